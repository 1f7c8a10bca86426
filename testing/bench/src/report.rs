//! The table, in Markdown.

use std::fmt::Write;

use crate::stats::Summary;

/// One figure.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) figure: String,
    /// The value of the peer.
    pub(crate) c: String,
    pub(crate) scsi_pr: String,
    /// The value of scsi-pr divided by the value of `against`.
    pub(crate) ratio: Summary,
    /// The name of the other side of the ratio.
    pub(crate) against: &'static str,
    /// The greatest ratio that reaches the target; `None` for figures without a target.
    pub(crate) bound: Option<f64>,
}

/// A value with the quartiles of its rounds.
pub(crate) fn value(summary: Summary, unit: &str) -> String {
    let Summary { median, low, high } = summary;
    if low == high {
        return format!("{} {unit}", short(median));
    }
    format!("{} {unit} ({} to {})", short(median), short(low), short(high))
}

/// Three significant digits, no exponent.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// All figures, as a table.
pub(crate) fn table(peer: &str, rows: &[Row]) -> String {
    let mut text =
        format!("| figure | {peer} | scsi-pr | ratio | to reach | |\n| --- | --- | --- | --- | --- | --- |\n");
    for row in rows {
        let Row { figure, c, scsi_pr, ratio, against, bound } = row;
        let ratio_text = value(*ratio, &format!("× {against}"));
        let (target, verdict) = match bound {
            Some(bound) => {
                (format!("≤ {bound} × {against}"), if ratio.median <= *bound { "reached" } else { "**missed**" })
            }
            None => ("–".into(), ""),
        };
        writeln!(text, "| {figure} | {c} | {scsi_pr} | {ratio_text} | {target} | {verdict} |")
            .expect("writing to a String cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_digits() {
        for (value, expected) in
            [(1945.4, "1945"), (100.0, "100"), (99.96, "100"), (10.43, "10.4"), (4.0, "4.00"), (0.0123, "0.012")]
        {
            assert_eq!(short(value), expected);
        }
    }

    #[test]
    fn a_row_says_whether_the_target_is_reached() {
        let row = |median, bound| Row {
            figure: "round trip".into(),
            c: "10.0 µs".into(),
            scsi_pr: "5.0 µs".into(),
            ratio: Summary { median, low: median, high: median },
            against: "C",
            bound,
        };
        let text = table("C helper", &[row(0.5, Some(0.6)), row(0.7, Some(0.6)), row(0.7, None)]);
        let verdicts: Vec<&str> = text.lines().skip(2).map(|line| line.rsplit('|').nth(1).unwrap().trim()).collect();
        assert_eq!(verdicts, ["reached", "**missed**", ""]);
        assert!(text.contains("| ≤ 0.6 × C |"), "{text}");
    }
}
