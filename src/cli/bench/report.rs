//! A report as text and as JSON.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    bench::{Amount, Bin, Figure, Machine, Mark, Report},
    cli::{Error, Terminal, tables},
};

/// The longest bar of a histogram, in characters.
const BAR: usize = 40;

/// What times of a figure are written in: seconds where its median or a budget reaches one.
#[derive(Clone, Copy)]
enum Unit {
    Seconds,
    Millis,
}

impl Unit {
    fn of(figure: &Figure) -> Self {
        let budgets = figure.budgets.iter().map(|budget| budget.limit);
        let most = budgets.fold(figure.distribution.at(Mark::Percentile(50)), Duration::max);
        if most >= Duration::from_secs(1) { Self::Seconds } else { Self::Millis }
    }

    fn show(self, time: Duration) -> String {
        match self {
            Self::Seconds => format!("{:.2} s", time.as_secs_f64()),
            Self::Millis => format!("{:.1} ms", millis(time)),
        }
    }

    /// As `show`, to as many digits as it has, down to microseconds.
    fn short(self, time: Duration) -> String {
        let (number, unit) = match self {
            Self::Seconds => (format!("{:.6}", time.as_secs_f64()), "s"),
            Self::Millis => (format!("{:.3}", millis(time)), "ms"),
        };
        format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// Writes a report for people.
pub(super) fn text(report: &Report, terminal: &mut Terminal) -> Result<(), Error> {
    terminal.line(format_args!("{}: {}", report.scenario, report.setting))?;
    for figure in &report.figures {
        terminal.line("")?;
        table(figure, terminal)?;
        if !figure.budgets.is_empty() {
            terminal.line("")?;
            histogram(figure, terminal)?;
        }
    }
    terminal.line("")?;
    for figure in &report.figures {
        let unit = Unit::of(figure);
        for budget in &figure.budgets {
            let (limit, measured) = (unit.short(budget.limit), figure.distribution.at(budget.mark));
            terminal.line(format_args!(
                "{}: {} at most {limit}: {}, {}",
                figure.name,
                budget.mark,
                unit.show(measured),
                verdict(figure.meets(budget))
            ))?;
        }
    }
    for amount in &report.amounts {
        let (name, value) = (amount.name, amount.value);
        let rest =
            amount.limit.map(|limit| format!(", at most {limit}: {}", verdict(amount.is_met())));
        terminal.line(format_args!("{name}: {value:.1}{}", rest.unwrap_or_default()))?;
    }
    for claim in &report.claims {
        let verdict = verdict(claim.holds());
        terminal.line(format_args!("{}: {} of {}, {verdict}", claim.text, claim.held, claim.of))?;
    }
    let Machine { cores, load, system, redis, is_release } = &report.machine;
    let build = if *is_release { "release" } else { "debug" };
    terminal.line("")?;
    terminal.line(format_args!(
        "{cores} cores, load {}, {system}, {redis}, millstream {} ({build} build), model: simulator",
        load.as_deref().unwrap_or("unknown"),
        env!("CARGO_PKG_VERSION")
    ))?;
    Ok(())
}

fn table(figure: &Figure, terminal: &mut Terminal) -> Result<(), Error> {
    let marks = Mark::ALL.map(|mark| mark.to_string());
    let header: Vec<&str> =
        ["figure", "count"].into_iter().chain(marks.iter().map(String::as_str)).collect();
    let unit = Unit::of(figure);
    let mut table = tables::table(&header, 1);
    let counted = [figure.name.to_owned(), figure.distribution.count().to_string()];
    let times = Mark::ALL.map(|mark| unit.show(figure.distribution.at(mark)));
    table.add_row(counted.into_iter().chain(times));
    Ok(terminal.lines(&table.trim_fmt())?)
}

fn histogram(figure: &Figure, terminal: &mut Terminal) -> Result<(), Error> {
    let (unit, bins) = (Unit::of(figure), figure.distribution.histogram());
    let most = bins.iter().map(|bin| bin.count).max().unwrap_or(0).max(1);
    let ranges: Vec<String> = bins
        .iter()
        .map(|Bin { from, to, .. }| format!("{} to {}", unit.short(*from), unit.short(*to)))
        .collect();
    let width = ranges.iter().map(String::len).max().unwrap_or(0);
    for (range, Bin { count, .. }) in ranges.iter().zip(&bins) {
        // Nothing that was measured vanishes.
        let bar = "█".repeat((count * BAR).div_ceil(most));
        terminal.line(format_args!("{range:>width$}  {count:>5}  {bar}").to_string().trim_end())?;
    }
    Ok(())
}

/// A report as one JSON object; times are in milliseconds.
pub(super) fn json(report: &Report) -> Value {
    let claims: Vec<Value> = report
        .claims
        .iter()
        .map(|claim| {
            json!({"claim": claim.text, "held": claim.held, "of": claim.of, "met": claim.holds()})
        })
        .collect();
    let amount = |a: &Amount| json!({"amount": a.name, "value": a.value, "limit": a.limit, "met": a.is_met()});
    let amounts: Vec<Value> = report.amounts.iter().map(amount).collect();
    let Machine { cores, load, system, redis, is_release } = &report.machine;
    json!({
        "scenario": report.scenario,
        "setting": report.setting,
        "figures": report.figures.iter().map(figure).collect::<Vec<_>>(),
        "amounts": amounts,
        "claims": claims,
        "met": report.is_met(),
        "machine": {
            "cores": cores, "load": load, "system": system, "redis": redis, "release_build": is_release,
            "millstream": env!("CARGO_PKG_VERSION"), "model": "simulator",
        },
    })
}

fn figure(figure: &Figure) -> Value {
    let distribution = &figure.distribution;
    let mut object = json!({
        "figure": figure.name, "unit": "ms", "count": distribution.count(),
    });
    for mark in Mark::ALL {
        object[mark.to_string()] = rounded(distribution.at(mark));
    }
    object["budgets"] = figure
        .budgets
        .iter()
        .map(|budget| {
            let (mark, limit) = (budget.mark.to_string(), rounded(budget.limit));
            json!({"mark": mark, "limit": limit, "met": figure.meets(budget)})
        })
        .collect();
    object["histogram"] = distribution
        .histogram()
        .iter()
        .map(|bin| json!({"from": rounded(bin.from), "to": rounded(bin.to), "count": bin.count}))
        .collect();
    object
}

/// Milliseconds, to the microsecond.
fn rounded(time: Duration) -> Value {
    json!((millis(time) * 1e3).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bench::{Budget, Claim, Distribution},
        cli::terminal::tests::paper,
    };

    fn report(samples: &[u64], limit: u64) -> Report {
        let distribution: Distribution =
            samples.iter().copied().map(Duration::from_millis).collect();
        let budgets =
            vec![Budget { mark: Mark::Percentile(50), limit: Duration::from_millis(limit) }];
        Report {
            scenario: "any",
            setting: "2 things".to_owned(),
            figures: vec![Figure { name: "a to b", distribution, budgets }],
            amounts: vec![Amount { name: "weight, g", value: 2.25, limit: Some(2.0) }],
            claims: vec![Claim { text: "things once", held: 2, of: 2 }],
            machine: Machine {
                cores: 2,
                load: Some("0.5".to_owned()),
                system: "linux".to_owned(),
                redis: "Redis 7.0.15".to_owned(),
                is_release: true,
            },
        }
    }

    #[test]
    fn a_report_tells_figures_budgets_claims_and_machine() {
        let (mut terminal, out, _) = paper();
        text(&report(&[4_100, 6_300], 6_000), &mut terminal).unwrap();
        let text = out.text();
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[2], ["FIGURE", "COUNT", "MIN", "P50", "P90", "P95", "P99", "MAX"]);
        assert_eq!(lines[3][3..7], ["2", "4.10", "s", "4.10"], "{text}");
        assert!(text.contains("a to b: p50 at most 6 s: 4.10 s, met\n"), "{text}");
        assert!(text.contains("weight, g: 2.2, at most 2: MISSED\n"), "{text}");
        assert!(text.contains("things once: 2 of 2, met\n"), "{text}");
        assert!(text.contains("2 cores, load 0.5, linux, Redis 7.0.15, millstream"), "{text}");
        assert!(text.contains("4 s to 6 s"), "{text}");
        assert_eq!(text.matches('█').count(), 2 * BAR, "{text}");
    }

    #[test]
    fn json_is_in_milliseconds_and_tells_what_was_missed() {
        let value = json(&report(&[20, 60], 19));
        assert_eq!(value["figures"][0]["max"], 60.0);
        assert_eq!(value["figures"][0]["budgets"][0]["met"], false);
        assert_eq!(value["met"], false);
        assert_eq!(value["claims"][0]["met"], true);
        assert_eq!(value["machine"]["cores"], 2);
    }
}
