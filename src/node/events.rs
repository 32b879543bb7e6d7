//! What the certificates' keeper tells, as log lines and counters.

use std::sync::Arc;

use crate::causes::Causes;
use crate::pki::Event;
use crate::telemetry::metrics::{Metrics, Reason};
use crate::telemetry::timestamp;

/// An observer that logs and counts.
pub(crate) fn observer(metrics: &Arc<Metrics>) -> impl Fn(Event) + Send + Sync + 'static {
    let metrics = metrics.clone();
    move |event| observe(&metrics, event)
}

fn observe(metrics: &Metrics, event: Event) {
    let daemon = &metrics.daemon;
    match event {
        Event::Issued {
            certificate,
            renewal,
            took,
        } => {
            daemon.certificates_issued.inc();
            tracing::info!(
                identity = %certificate.identity(),
                serial = certificate.serial(),
                renewal,
                duration = ?took,
                "certificate issued",
            );
        }
        Event::Failed {
            identity,
            error,
            failures,
            retry,
            kept_until,
        } => {
            let reason = Reason {
                reason: error.reason(),
            };
            daemon.certificate_failures.get_or_create(&reason).inc();
            // Without a valid certificate connections fail; with one there is time to act.
            if kept_until.is_some() {
                tracing::warn!(
                    identity = %identity,
                    error = %Causes(&error),
                    failures,
                    retry = ?retry,
                    kept_until = ?kept_until,
                    "certificate not renewed, the valid one is kept",
                );
            } else {
                tracing::error!(
                    identity = %identity,
                    error = %Causes(&error),
                    failures,
                    retry = ?retry,
                    "no certificate, connections of this identity fail",
                );
            }
        }
        Event::Expired { identity } => {
            tracing::error!(identity = %identity, "certificate expired, its connections fail");
        }
        Event::AuthorityEnding { ends } => {
            tracing::warn!(
                ends = timestamp(ends),
                "the certificate authority's root ends soon"
            );
        }
    }
}
