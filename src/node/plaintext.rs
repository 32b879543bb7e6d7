//! One connection arriving at a captured pod in plain TCP, told from start to end.
//!
//! It comes from outside the mesh: a node, a pod that is not enrolled, the world. Nobody has proven
//! anything, so policy sees it without an identity.

use std::rc::Rc;

use crate::capture::Captured;
use crate::deliver;
use crate::mesh::{Direction, Flow, Local, Path, Peer, canonical_ip};
use crate::node::account::Account;
use crate::node::error::Error;
use crate::node::pod::Pod;
use crate::node::worker::Worker;

/// Carries one plain connection to the pod's application, if policy lets it.
pub(crate) async fn carry(worker: Rc<Worker>, pod: Rc<Pod>, captured: Captured) {
    let account = Account::open(&worker, Direction::Inbound, captured.source);
    let outcome = Box::pin(arrive(&worker, &pod, captured, &account)).await;
    account.close(&worker, outcome);
}

async fn arrive(
    worker: &Rc<Worker>,
    pod: &Rc<Pod>,
    captured: Captured,
    account: &Account,
) -> Result<deliver::End, Error> {
    let Captured {
        socket,
        source,
        original_dst: to,
    } = captured;
    account.dialled(to.get());
    let permit = {
        let world = worker.world();
        let local = world.pod(&pod.uid).ok_or(Error::PodUnknown)?;
        let workload = world
            .snapshot
            .workload_at(canonical_ip(source.ip()))
            .cloned();
        let flow = Flow {
            direction: Direction::Inbound,
            source: Peer {
                addr: source,
                identity: None,
                workload,
            },
            destination: Local {
                addr: to.get(),
                workload: Some(local.workload.clone()),
                service: None,
            },
            path: Path::Plain,
        };
        Rc::new(worker.decide(&local.evaluator, flow, account)?)
    };
    let live = account.permitted(worker, pod, &permit);
    let carried = async {
        let app = deliver::dial(&permit, &pod.netns, Some(source.ip())).await?;
        let (near, meter) = (socket, account.meter_from_source());
        Ok(deliver::splice(&permit, near, app, meter).await)
    };
    live.unless_ended(carried).await
}
