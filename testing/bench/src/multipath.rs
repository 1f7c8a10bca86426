//! The figures of multipath: taken in the lab's guest, as they need maps of a real target, by `cargo xtask lab --figures`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::programs::Programs;
use crate::report::{Row, value};
use crate::stats::{ratios, summary};

/// A figure as the lab calls it, and as the table does.
struct Figure {
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    against: &'static str,
    bound: Option<f64>,
}

const fn figure(name: &'static str, title: &'static str, against: &'static str, bound: Option<f64>) -> Figure {
    Figure { name, title, unit: "ms", against, bound }
}

const MPATHPERSIST: &str = "mpathpersist";

const FIGURES: [Figure; 13] = [
    figure("alone REGISTER", "multipath: REGISTER AND IGNORE EXISTING KEY, two paths", MPATHPERSIST, Some(1.2)),
    figure("alone RESERVE", "multipath: RESERVE", MPATHPERSIST, Some(1.2)),
    figure("alone RELEASE", "multipath: RELEASE", MPATHPERSIST, Some(1.2)),
    figure("alone unregister", "multipath: the registration undone", MPATHPERSIST, Some(1.2)),
    figure("alone", "multipath: these four together", MPATHPERSIST, Some(1.2)),
    figure("at once, helper", "multipath: the four on ten maps at once", "one map", Some(3.0)),
    figure("at once, mpathpersist", "multipath: mpathpersist on ten maps at once", "one map", None),
    figure(
        "slow array, helper",
        "multipath: the four on ten maps at once, where the array takes 20 ms to answer",
        "one map",
        None,
    ),
    figure("in READ KEYS", "multipath: READ KEYS of a map", "a path", Some(1.2)),
    figure("in turns READ KEYS", "the same", "both paths by turns", None),
    figure("in READ FULL STATUS", "multipath: READ FULL STATUS of a map", "a path", Some(1.2)),
    figure("in turns READ FULL STATUS", "the same", "both paths by turns", None),
    Figure {
        name: "routing",
        title: "system calls by which a command on a device seen before finds its manager",
        unit: "",
        against: "call",
        bound: Some(2.0),
    },
];

/// The values of each figure's rounds: those of scsi-pr's helper, and those of the other side of the ratio.
type Rounds = BTreeMap<String, (Vec<f64>, Vec<f64>)>;

/// All of them.
pub(crate) fn measure(programs: &Programs) -> Result<Vec<Row>> {
    let rounds = run(programs)?;
    FIGURES.iter().map(|figure| row(figure, &rounds)).collect()
}

fn row(figure: &Figure, rounds: &Rounds) -> Result<Row> {
    let (scsi_pr, other) =
        rounds.get(figure.name).with_context(|| format!("the lab has no figure {:?}", figure.name))?;
    let held_against = match figure.unit {
        "" => String::new(),
        unit => format!("; {}: {}", figure.against, value(summary(other)?, unit)),
    };
    Ok(Row {
        figure: format!("{}{held_against}", figure.title),
        c: "–".into(),
        scsi_pr: value(summary(scsi_pr)?, figure.unit),
        ratio: summary(&ratios(scsi_pr, other))?,
        against: figure.against,
        bound: figure.bound,
    })
}

/// Has the lab's guest boot, and reads what it prints.
fn run(programs: &Programs) -> Result<Rounds> {
    let directory = programs.scsi_pr.path.parent().context("the helper is in no directory")?;
    let mut lab = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["run", "--quiet", "--package", "xtask", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"))
        .args(["--", "lab", "--figures"])
        .arg(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("run cargo")?;
    let mut rounds = Rounds::new();
    for line in BufReader::new(lab.stdout.take().context("the lab has no output")?).lines() {
        let line = line?;
        match read(&line) {
            Some((figure, scsi_pr, other)) => {
                let of_figure = rounds.entry(figure.to_owned()).or_default();
                of_figure.0.push(scsi_pr);
                of_figure.1.push(other);
            }
            // A line about progress or a failure.
            None => eprintln!("{line}"),
        }
    }
    let status = lab.wait()?;
    ensure!(status.success(), "the lab failed ({status})");
    Ok(rounds)
}

/// A round, in a line of the lab's.
fn read(line: &str) -> Option<(&str, f64, f64)> {
    let mut words = line.strip_prefix("round\t")?.split('\t');
    let round = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    words.next().is_none().then_some(round)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_a_line() {
        assert_eq!(read("round\talone RESERVE\t1.5\t3"), Some(("alone RESERVE", 1.5, 3.0)));
        for line in ["", "round", "round\ta\t1", "round\ta\t1\tx", "round\ta\t1\t2\t3", "  FAILED  round\ta\t1\t2"] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn a_figure_is_of_all_its_rounds() {
        let rounds = Rounds::from([("in READ KEYS".to_owned(), (vec![1.0, 2.0, 9.0], vec![1.0, 4.0, 3.0]))]);
        let row = row(&FIGURES[8], &rounds).unwrap();
        assert_eq!((row.ratio.median, row.scsi_pr.as_str()), (1.0, "2.00 ms (1.00 to 9.00)"));
        assert!(super::row(&FIGURES[0], &rounds).is_err());
    }
}
