//! One connection arriving at a captured pod in plain TCP, told from start to end.
//!
//! It comes from outside the mesh: a node, a pod that is not enrolled, the world. Nobody has proven
//! anything, so policy sees it without an identity. What policy refuses is let in nevertheless if the
//! kernel says that it is a probe of this node's kubelet. Of what may pass anyway it is asked beside
//! the dial, and not often: it only makes the record of a probe a quieter one.

use std::pin::pin;
use std::rc::Rc;

use futures_util::future::join;

use crate::authorize::{self, Permit, Refusal};
use crate::capture::Captured;
use crate::deliver;
use crate::mesh::{Direction, Flow, Local, Path, Peer, canonical_ip};
use crate::node::account::Account;
use crate::node::carry::{self, Carrying, Joined};
use crate::node::error::Error;
use crate::node::live::{Connection, Metered};
use crate::node::pod::Pod;
use crate::node::worker::Worker;
use crate::task;

/// Spawns the task of one such connection, if there is room for it.
pub(crate) fn serve(worker: Rc<Worker>, pod: Rc<Pod>, captured: Captured) {
    let way = Direction::Inbound;
    if let Some(room) = worker.room(&pod, way, captured.source) {
        let account = Account::open(&worker, &pod, way, captured.source, room);
        carry::spawn("plaintext", carry(worker, pod, captured, account));
    }
}

/// Brings one plain connection to the pod's application, if policy lets it.
async fn carry(
    worker: Rc<Worker>,
    pod: Rc<Pod>,
    captured: Captured,
    account: Account,
) -> Option<Carrying> {
    account.dials();
    let joined = arrive(&worker, &pod, captured, &account).await;
    account.settle(joined)
}

async fn arrive(
    worker: &Rc<Worker>,
    pod: &Rc<Pod>,
    captured: Captured,
    account: &Account,
) -> Result<Joined, Error> {
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
        worker.decide(&local.evaluator, flow, account)
    };
    let permit = match permit {
        Err(Error::Authorize(refusal)) => probe(worker, refusal).await?,
        decided => decided?,
    };
    let live = account.permitted(permit);
    let joining = pin!(async {
        let dial = deliver::dial(&live.permit, &pod.netns, Some(source.ip()));
        let (app, ()) = join(dial, recognise(live)).await;
        let (near, meter) = (socket, Metered::from_source(live));
        Ok(Joined::Splice(deliver::splice(
            &live.permit,
            near,
            app?,
            meter,
        )))
    });
    live.unless_ended(joining).await
}

/// What policy refuses may yet be a probe of this node's kubelet: nobody else has its socket.
async fn probe(worker: &Worker, refusal: Box<Refusal>) -> Result<Permit, Error> {
    let (source, destination) = (refusal.flow.source.addr, refusal.flow.destination.addr);
    let kubelet = worker.shared.kubelet.clone();
    if !kubelet.is_node(source.ip()) {
        return Err(Error::Authorize(refusal));
    }
    let attest = move || kubelet.attest(source, destination);
    let attested = task::blocking("attest", attest).await.flatten();
    attested
        .and_then(|(socket, kubelet)| authorize::probe(&refusal.flow, &socket, kubelet))
        .ok_or(Error::Authorize(refusal))
}

/// Finds out whether what policy permits is a probe, as most is that comes from the node itself.
async fn recognise(live: &Connection) {
    let flow = live.permit.flow();
    let (source, destination) = (flow.source.addr, flow.destination.addr);
    let kubelet = live.worker.shared.kubelet.clone();
    if flow.path == Path::Plain && kubelet.is_node(source.ip()) && kubelet.is_curious() {
        let ask = move || kubelet.recognises(source, destination);
        let known = task::blocking("recognise", ask).await;
        live.probe.set(known.unwrap_or(false));
    }
}
