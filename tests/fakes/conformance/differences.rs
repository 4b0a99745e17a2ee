//! Where the stores differ from AWS.

/// A difference of a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listed {
    pub(crate) case: &'static str,
    /// What the case comes to there.
    pub(crate) outcome: &'static str,
    /// Whether the fake does the same when it is told to be like that store.
    pub(crate) played: bool,
}

/// What the case comes to at a store that differs.
pub(crate) fn outcome(listed: &[Listed], case: &str) -> Option<&'static str> {
    listed.iter().find(|listed| listed.case == case).map(|listed| listed.outcome)
}

/// LocalStack 4.9.2.
pub(crate) const LOCALSTACK: &[Listed] = &[];

/// SeaweedFS 4.48.
pub(crate) const SEAWEEDFS: &[Listed] = &[];
