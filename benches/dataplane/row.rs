//! The rows: what is measured, how it is called, and what is aimed at.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::carrier::{Carrier, Place};
use crate::hold;
use crate::load;

/// How much is asked of a row.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) time: Duration,
    /// How many connections are held, and how long they are watched.
    pub(crate) idle: usize,
    pub(crate) quiet: Duration,
    /// Where programs write what they say.
    pub(crate) directory: PathBuf,
}

/// One measurement, which yields one or several figures.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Whether the carrier's programs are started anew for it.
    pub(crate) fresh: bool,
    pub(crate) figures: &'static [Figure],
    pub(crate) run: fn(&Carrier, &Load) -> Result<Vec<f64>>,
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) decimals: usize,
    pub(crate) kind: Kind,
    pub(crate) target: Option<Target>,
}

/// How the figures of carriers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By itself; also against direct TCP.
    Whole,
    /// By what is added to direct TCP's, which makes a line of its own.
    Added,
    /// What programs cost; direct TCP has none.
    Cost,
}

/// What Adit is to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// At least this times Envoy's.
    AtLeast(f64),
    /// At most this times Envoy's (of [`Kind::Added`]: times what Envoy adds).
    AtMost(f64),
    /// At most this, whatever the others have.
    Absolute(f64),
}

const fn whole(
    name: &'static str,
    unit: &'static str,
    decimals: usize,
    target: Option<Target>,
) -> Figure {
    Figure {
        name,
        unit,
        decimals,
        kind: Kind::Whole,
        target,
    }
}

const fn added(name: &'static str, target: Option<Target>) -> Figure {
    Figure {
        name,
        unit: "µs",
        decimals: 1,
        kind: Kind::Added,
        target,
    }
}

const fn cost(
    name: &'static str,
    unit: &'static str,
    decimals: usize,
    target: Option<Target>,
) -> Figure {
    Figure {
        name,
        unit,
        decimals,
        kind: Kind::Cost,
        target,
    }
}

/// All rows, in the order of the table.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "bulk1",
        fresh: false,
        figures: &[
            whole(
                "bulk, 1 connection",
                "Gbit/s",
                2,
                Some(Target::AtLeast(1.5)),
            ),
            cost(
                "— CPU of the proxies",
                "s/GiB",
                2,
                Some(Target::AtMost(0.65)),
            ),
        ],
        run: |carrier, load| bulk(carrier, Place::Far, 1, load),
    },
    Row {
        name: "bulk8",
        fresh: false,
        figures: &[
            whole(
                "bulk, 8 connections",
                "Gbit/s",
                2,
                Some(Target::AtLeast(1.5)),
            ),
            cost(
                "— CPU of the proxies",
                "s/GiB",
                2,
                Some(Target::AtMost(0.62)),
            ),
        ],
        run: |carrier, load| bulk(carrier, Place::Far, 8, load),
    },
    Row {
        name: "ping64",
        fresh: false,
        figures: &[
            added("ping-pong 64 B, p50", Some(Target::AtMost(0.3))),
            added("ping-pong 64 B, p99", Some(Target::AtMost(0.3))),
        ],
        run: |carrier, load| ping(carrier, Place::Far, load),
    },
    Row {
        name: "ping1k",
        fresh: false,
        figures: &[
            whole(
                "ping-pong 1 KiB on 64 connections",
                "/s",
                0,
                Some(Target::AtLeast(1.3)),
            ),
            cost(
                "— CPU of the proxies",
                "µs each",
                1,
                Some(Target::AtMost(0.75)),
            ),
        ],
        run: |carrier, load| {
            let measured = load::ping_many(carrier, Place::Far, 64, 1024, load.time)?;
            Ok(vec![measured.rate(), measured.cost() * 1e6])
        },
    },
    Row {
        name: "connect1",
        fresh: false,
        figures: &[
            whole(
                "connect + exchange + close, one at a time, p50",
                "µs",
                1,
                Some(Target::AtMost(0.65)),
            ),
            whole("— p99", "µs", 1, None),
        ],
        run: |carrier, load| {
            let measured = load::connect(carrier, Place::Far, load.time)?;
            Ok(vec![measured.percentile(0.5), measured.percentile(0.99)])
        },
    },
    Row {
        name: "connect32",
        fresh: false,
        figures: &[
            whole(
                "the same, 32 at a time",
                "/s",
                0,
                Some(Target::AtLeast(2.0)),
            ),
            whole("— first byte, p99", "µs", 0, Some(Target::AtMost(0.3))),
            cost(
                "— CPU of the proxies",
                "µs each",
                1,
                Some(Target::AtMost(0.5)),
            ),
        ],
        run: |carrier, load| {
            let measured = load::connect_many(carrier, Place::Far, 32, load.time)?;
            Ok(vec![
                measured.rate(),
                measured.percentile(0.99),
                measured.cost() * 1e6,
            ])
        },
    },
    Row {
        name: "near-bulk1",
        fresh: false,
        figures: &[
            whole(
                "same node: bulk, 1 connection",
                "Gbit/s",
                2,
                Some(Target::AtLeast(2.0)),
            ),
            cost("— CPU of the proxies", "s/GiB", 2, None),
        ],
        run: |carrier, load| bulk(carrier, Place::Near, 1, load),
    },
    Row {
        name: "near-ping64",
        fresh: false,
        figures: &[
            added("same node: ping-pong 64 B, p50", Some(Target::AtMost(0.5))),
            added("same node: ping-pong 64 B, p99", None),
        ],
        run: |carrier, load| ping(carrier, Place::Near, load),
    },
    Row {
        name: "near-connect32",
        fresh: false,
        figures: &[
            whole(
                "same node: connections, 32 at a time",
                "/s",
                0,
                Some(Target::AtLeast(1.5)),
            ),
            whole("— first byte, p99", "µs", 0, None),
            cost("— CPU of the proxies", "µs each", 1, None),
        ],
        run: |carrier, load| {
            let measured = load::connect_many(carrier, Place::Near, 32, load.time)?;
            Ok(vec![
                measured.rate(),
                measured.percentile(0.99),
                measured.cost() * 1e6,
            ])
        },
    },
    Row {
        name: "idle",
        fresh: true,
        figures: &[
            cost(
                "memory per idle connection, both ends",
                "KiB",
                2,
                Some(Target::Absolute(2.5)),
            ),
            cost("— connections", "held", 0, None),
            cost(
                "— CPU of the proxies, all connections",
                "%",
                1,
                Some(Target::Absolute(1.0)),
            ),
            cost("— CPU to open one, with an exchange", "µs", 1, None),
            cost("— CPU to close one", "µs", 1, None),
            cost("— until all are closed", "ms", 0, None),
        ],
        run: |carrier, load| {
            let held = hold::measure(carrier, load.idle, load.quiet, &load.directory)?;
            Ok(vec![
                held.memory / 1024.0,
                held.connections as f64,
                held.idle * 100.0,
                held.open * 1e6,
                held.close * 1e6,
                held.closing.as_secs_f64() * 1e3,
            ])
        },
    },
];

fn bulk(carrier: &Carrier, place: Place, connections: usize, load: &Load) -> Result<Vec<f64>> {
    let measured = load::bulk(carrier, place, connections, load.time)?;
    let gibibyte = f64::from(1 << 30);
    Ok(vec![
        measured.rate() * 8.0 / 1e9,
        measured.cost() * gibibyte,
    ])
}

fn ping(carrier: &Carrier, place: Place, load: &Load) -> Result<Vec<f64>> {
    let measured = load::ping(carrier, place, 64, load.time)?;
    Ok(vec![measured.percentile(0.5), measured.percentile(0.99)])
}
