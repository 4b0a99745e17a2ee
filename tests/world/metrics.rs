//! Prometheus' text format, as much of it as tests ask about.

/// All samples of one scrape.
#[derive(Debug)]
pub(crate) struct Metrics(String);

impl Metrics {
    /// Takes the text of a scrape.
    pub(crate) fn of(text: String) -> Self {
        Self(text)
    }

    /// Says whether a metric (without its prefix) has any sample.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.samples(name).next().is_some()
    }

    /// Says whether a metric (without its prefix) has a sample with this label that nothing was
    /// counted in yet.
    pub(crate) fn begins(&self, name: &str, label: (&str, &str)) -> bool {
        let (name_of, value) = label;
        self.samples(name)
            .any(|rest| rest.contains(&format!("{name_of}=\"{value}\"")) && rest.ends_with(" 0"))
    }

    /// Adds up the samples of a metric (without its prefix) whose labels are, among others, these.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        let chosen = self
            .samples(name)
            .filter(|rest| wanted.iter().all(|label| rest.contains(label)));
        chosen
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Returns the value of a metric that has neither the daemon's prefix nor labels.
    pub(crate) fn unprefixed(&self, name: &str) -> f64 {
        let mut lines = self.0.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_default()
    }

    /// Returns labels and value of each sample.
    fn samples(&self, name: &str) -> impl Iterator<Item = &str> {
        let lines = self
            .0
            .lines()
            .filter_map(|line| line.strip_prefix("s3_replicator_"));
        lines
            .filter_map(move |line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with(['{', ' ']))
    }

    /// Says whether there is anything at all, that is, whether the daemon answered.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
