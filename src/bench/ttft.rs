//! Time to first token: what queue, worker and gateway add to a call of the model.
//!
//! The same client asks the simulator directly and through the gateway, one after the other, with nothing
//! else under way, and notes when the first text arrives. The simulator answers at once. The gateway is a
//! process of its own; worker, simulator and client share this one. What is added is the difference within
//! a pair; the order within a pair changes, so that neither side is always the one that finds the caches warm.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;

use super::{
    Budget, Claim, Distribution, Error, Figure, Lab, Mark, Progress, Report, noise,
    process::Process,
};
use crate::{
    event::Piece,
    job::ChatRequest,
    upstream::{
        Upstream as _,
        openai::{self, OpenAi},
    },
};

/// Pairs that open connections and load scripts before anything is measured.
const WARM_UP: u32 = 20;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Pairs of calls.
    pub pairs: u32,
    /// The gateway's program.
    pub gateway: PathBuf,
}

/// What came of one call.
struct Call {
    first: Duration,
    is_whole: bool,
}

/// Measures both ways.
pub async fn run(
    lab: &mut Lab,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Report, Error> {
    lab.configure(|config| config.gateway.listen.set_port(0));
    lab.employ("worker").await?;
    lab.wait_for_workers(1, || Ok(())).await?;
    let mut gateway = Process::start(&options.gateway, lab.config()).await?;
    let base_url = format!("http://{}/v1", gateway.address()?);
    let direct = OpenAi::new(&lab.config().upstream)?;
    let queued = OpenAi::new(&openai::Options { base_url, ..lab.config().upstream.clone() })?;
    for number in 0..WARM_UP {
        pair(&direct, &queued, number).await?;
    }
    let measure = async {
        let mut pairs = Vec::new();
        for number in WARM_UP..WARM_UP + options.pairs {
            pairs.push(pair(&direct, &queued, number).await?);
            progress();
        }
        Ok::<_, Error>(pairs)
    };
    let (pairs, timers) = noise::beside(measure).await;
    let pairs = pairs?;
    gateway.check()?;
    Ok(Report {
        scenario: "ttft",
        setting: format!("{} calls directly and as many through an idle system", options.pairs),
        figures: figures(&pairs, timers),
        amounts: Vec::new(),
        claims: vec![Claim {
            text: "answers whole both ways",
            held: pairs.iter().filter(|pair| pair.iter().all(|call| call.is_whole)).count(),
            of: pairs.len(),
        }],
        machine: lab.machine().await?,
    })
}

fn figures(pairs: &[[Call; 2]], timers: Figure) -> Vec<Figure> {
    let figure = |name, take: fn(&[Call; 2]) -> Duration, budgets| {
        let distribution = pairs.iter().map(take).collect::<Distribution>();
        Figure { name, distribution, budgets }
    };
    let budget = |mark, micros| Budget { mark, limit: Duration::from_micros(micros) };
    let budgets = vec![budget(Mark::Percentile(50), 1500), budget(Mark::Percentile(99), 6000)];
    vec![
        figure("added", |[direct, queued]| queued.first.saturating_sub(direct.first), budgets),
        figure("first token, asked directly", |[direct, _]| direct.first, Vec::new()),
        figure("first token, through the gateway", |[_, queued]| queued.first, Vec::new()),
        timers,
    ]
}

/// One call each way: the direct one, and the one through the gateway.
async fn pair(direct: &OpenAi, queued: &OpenAi, number: u32) -> Result<[Call; 2], Error> {
    let request = Lab::job("tokens=8", &format!("call {number}")).request;
    if number.is_multiple_of(2) {
        let first = call(direct, &request).await?;
        return Ok([first, call(queued, &request).await?]);
    }
    let first = call(queued, &request).await?;
    Ok([call(direct, &request).await?, first])
}

async fn call(model: &OpenAi, request: &ChatRequest) -> Result<Call, Error> {
    let asked = tokio::time::timeout(PATIENCE, ask(model, request)).await;
    asked.map_err(|_| Error::Stalled { what: "no answer came", waited: PATIENCE })?
}

async fn ask(model: &OpenAi, request: &ChatRequest) -> Result<Call, Error> {
    let begun = Instant::now();
    let asked = model.answer(request, true).await;
    let mut parts = asked.map_err(|failure| Error::Refused { said: failure.message })?;
    let (mut first, mut is_whole) = (None, false);
    while let Some(part) = parts.next().await {
        let part = part.map_err(|failure| Error::Refused { said: failure.message })?;
        if first.is_none() && part.pieces.iter().any(Piece::speaks) {
            first = Some(begun.elapsed());
        }
        is_whole |= part.pieces.iter().any(|piece| piece.finish_reason.is_some());
    }
    let nothing = || Error::Refused { said: "an answer without a token".to_owned() };
    Ok(Call { first: first.ok_or_else(nothing)?, is_whole })
}
