//! What the file can say and the daemon can't do yet.

use crate::diagnostics::Problems;
use crate::schema;

/// Refuses what is not available in this version.
pub(super) fn refuse(rule: &schema::Rule, problems: &mut Problems<'_>) {
    if rule.acl.present_value().is_some_and(|acl| acl == "copy") {
        problems.add_problem(
            &rule.acl.spot,
            "\"copy\" is not available in this version; use \"destination-owner\"",
        );
    }
}
