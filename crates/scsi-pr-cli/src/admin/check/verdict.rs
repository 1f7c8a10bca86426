//! The requirements of each kind of cluster, and whether a unit meets them. No I/O.

use std::fmt::Write;

use scsi_pr::Type;
use scsi_pr_daemon::log::escape;
use serde::{Serialize, Serializer};

use crate::admin::options::type_name;
use crate::admin::text;

/// A property of a unit that a cluster may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requirement {
    ReadKeys,
    ReadReservation,
    ReportCapabilities,
    ReadFullStatus,
    Register,
    RegisterWithAptpl,
    RegisterAndIgnoreExistingKey,
    /// RESERVE, what the unit reports then, and RELEASE.
    Reserve(Type),
    Preempt,
    PreemptAndAbort,
    Clear,
    Unregister,
    Generation,
    /// PREEMPT of another initiator, its loss of access, and its unit attention.
    Exclusion,
    Identifiers,
    SameIdentifiers,
    MultipathMap,
}

impl Requirement {
    /// The name in JSON and text.
    fn name(self) -> String {
        match self {
            Self::ReadKeys => "read-keys".to_owned(),
            Self::ReadReservation => "read-reservation".to_owned(),
            Self::ReportCapabilities => "report-capabilities".to_owned(),
            Self::ReadFullStatus => "read-full-status".to_owned(),
            Self::Register => "register".to_owned(),
            Self::RegisterWithAptpl => "register-with-aptpl".to_owned(),
            Self::RegisterAndIgnoreExistingKey => "register-and-ignore-existing-key".to_owned(),
            Self::Reserve(reservation_type) => format!("reserve-{}", type_name(reservation_type)),
            Self::Preempt => "preempt".to_owned(),
            Self::PreemptAndAbort => "preempt-and-abort".to_owned(),
            Self::Clear => "clear".to_owned(),
            Self::Unregister => "unregister".to_owned(),
            Self::Generation => "generation".to_owned(),
            Self::Exclusion => "exclusion-of-another-initiator".to_owned(),
            Self::Identifiers => "identifiers".to_owned(),
            Self::SameIdentifiers => "same-identifiers-by-all-paths".to_owned(),
            Self::MultipathMap => "multipath-map".to_owned(),
        }
    }
}

impl Serialize for Requirement {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

/// The outcome of a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "kebab-case")]
pub(crate) enum Outcome {
    Works,
    Fails(String),
    NotExamined(String),
}

/// A test and its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Test {
    #[serde(rename = "test")]
    pub(super) requirement: Requirement,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

/// Whether a cluster would work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    WouldNotWork,
    /// No test of a requirement failed. One initiator cannot test every requirement.
    NoObstacleFound,
    NotExamined,
}

/// The verdict about one kind of cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ClusterVerdict {
    pub(super) cluster: &'static str,
    pub(super) verdict: Verdict,
    /// The requirements that are not met, with the reason.
    pub(super) obstacles: Vec<String>,
    /// The requirements without a test, with the reason.
    pub(super) not_examined: Vec<String>,
}

const WERO: Requirement = Requirement::Reserve(Type::WriteExclusiveRegistrantsOnly);

/// The kinds of clusters, and the requirements of each. Windows: MS-CSVP. Pacemaker: the commands of fence_scsi and
/// fence_mpath. Oracle Clusterware has no fencing by reservations of its own; Veritas and Solaris Cluster beneath it have.
const CLUSTERS: [(&str, &[Requirement]); 4] = [
    (
        "Windows failover cluster",
        &[
            Requirement::ReadKeys,
            Requirement::ReadReservation,
            Requirement::RegisterAndIgnoreExistingKey,
            WERO,
            Requirement::Preempt,
            Requirement::Clear,
            Requirement::Unregister,
            Requirement::Exclusion,
            Requirement::Identifiers,
            Requirement::SameIdentifiers,
        ],
    ),
    (
        "Pacemaker, fence_scsi",
        &[
            Requirement::ReadKeys,
            Requirement::ReadReservation,
            Requirement::RegisterAndIgnoreExistingKey,
            WERO,
            Requirement::PreemptAndAbort,
            Requirement::Exclusion,
        ],
    ),
    (
        "Pacemaker, fence_mpath",
        &[
            Requirement::MultipathMap,
            Requirement::ReadKeys,
            Requirement::ReadReservation,
            Requirement::Register,
            WERO,
            Requirement::PreemptAndAbort,
            Requirement::Exclusion,
        ],
    ),
    (
        "Oracle RAC, fenced by Veritas or Solaris Cluster",
        &[
            Requirement::ReadKeys,
            Requirement::ReadReservation,
            Requirement::Register,
            WERO,
            Requirement::PreemptAndAbort,
            Requirement::Unregister,
            Requirement::Exclusion,
        ],
    ),
];

/// The verdict about each kind of cluster.
pub(super) fn of_clusters(tests: &[Test]) -> Vec<ClusterVerdict> {
    CLUSTERS.iter().map(|(cluster, requirements)| of_cluster(cluster, requirements, tests)).collect()
}

fn of_cluster(cluster: &'static str, requirements: &[Requirement], tests: &[Test]) -> ClusterVerdict {
    let (mut obstacles, mut not_examined) = (Vec::new(), Vec::new());
    for requirement in requirements {
        let name = requirement.name();
        match tests.iter().find(|test| test.requirement == *requirement).map(|test| &test.outcome) {
            Some(Outcome::Works) => {}
            Some(Outcome::Fails(why)) => obstacles.push(format!("{name}: {why}")),
            Some(Outcome::NotExamined(why)) => not_examined.push(format!("{name}: {why}")),
            None => not_examined.push(format!("{name}: an earlier test failed")),
        }
    }
    let needs_map = requirements.contains(&Requirement::MultipathMap);
    let is_map =
        tests.iter().any(|test| test.requirement == Requirement::MultipathMap && test.outcome == Outcome::Works);
    let verdict = match (obstacles.is_empty(), needs_map && !is_map) {
        (false, _) => Verdict::WouldNotWork,
        (true, true) => Verdict::NotExamined,
        (true, false) => Verdict::NoObstacleFound,
    };
    ClusterVerdict { cluster, verdict, obstacles, not_examined }
}

impl ClusterVerdict {
    /// The verdict for a terminal.
    pub(super) fn text(&self) -> String {
        let verdict = match self.verdict {
            Verdict::WouldNotWork => "would not work",
            Verdict::NoObstacleFound => "no obstacle found",
            Verdict::NotExamined => "not examined",
        };
        let mut text = format!("  {}: {verdict}\n", self.cluster);
        for obstacle in &self.obstacles {
            let _ = writeln!(text, "    {}", escape(obstacle));
        }
        for rest in &self.not_examined {
            let _ = writeln!(text, "    not examined: {}", escape(rest));
        }
        text
    }
}

/// The tests, a line for each.
pub(super) fn table_of_tests(tests: &[Test]) -> String {
    let rows: Vec<[String; 3]> = tests
        .iter()
        .map(|test| {
            let (outcome, reason) = match &test.outcome {
                Outcome::Works => ("works", String::new()),
                Outcome::Fails(reason) => ("fails", escape(reason)),
                Outcome::NotExamined(reason) => ("not examined", escape(reason)),
            };
            [test.requirement.name(), outcome.to_owned(), reason]
        })
        .collect();
    text::columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_works() -> Vec<Test> {
        let requirements = CLUSTERS.iter().flat_map(|(_, requirements)| *requirements);
        requirements.map(|requirement| Test { requirement: *requirement, outcome: Outcome::Works }).collect()
    }

    fn with(requirement: Requirement, outcome: Outcome) -> Vec<Verdict> {
        let mut tests = all_works();
        tests.iter_mut().filter(|test| test.requirement == requirement).for_each(|test| test.outcome = outcome.clone());
        of_clusters(&tests).iter().map(|one| one.verdict).collect()
    }

    #[test]
    fn failed_requirement_is_an_obstacle_where_it_is_needed() {
        use Verdict::{NoObstacleFound as Open, NotExamined, WouldNotWork as Not};
        let fails = || Outcome::Fails("05/24/00".to_owned());
        assert_eq!(with(WERO, fails()), [Not, Not, Not, Not]);
        assert_eq!(with(Requirement::Identifiers, fails()), [Not, Open, Open, Open]);
        assert_eq!(with(Requirement::PreemptAndAbort, fails()), [Open, Not, Not, Not]);
        assert_eq!(with(Requirement::Reserve(Type::ExclusiveAccess), fails()), [Open, Open, Open, Open]);
        let no_map = Outcome::NotExamined("one path".to_owned());
        assert_eq!(with(Requirement::MultipathMap, no_map), [Open, Open, NotExamined, Open]);
    }

    #[test]
    fn requirement_without_a_test_is_not_reported_as_working() {
        for verdict in of_clusters(&[]) {
            let count = CLUSTERS.iter().find(|(name, _)| *name == verdict.cluster).unwrap().1.len();
            assert_eq!((verdict.not_examined.len(), verdict.obstacles.len()), (count, 0), "{verdict:?}");
        }
    }

    #[test]
    fn json_of_a_test_has_its_outcome_and_reason() {
        let test = Test { requirement: WERO, outcome: Outcome::Fails("05/24/00".to_owned()) };
        let expected = serde_json::json!({
            "test": "reserve-write-exclusive-registrants-only", "outcome": "fails", "reason": "05/24/00",
        });
        assert_eq!(serde_json::to_value(test).unwrap(), expected);
    }
}
