//! What arrives at a pod's tunnel port, told from start to end.
//!
//! Two kinds of connection come here: tunnels of other nodes' daemons (and of ztunnel, Envoy and
//! whoever else speaks HBONE), each carrying many streams, and announced connections of this very
//! daemon from pods of the same node. Both end in the same place: the policy of the destination
//! pod decides by the source's identity, then the application is dialled from the source's address.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use socket2::SockRef;

use crate::capture::{Captured, Port};
use crate::deliver::{self, Side};
use crate::mesh::{
    Direction, Flow, Identity, Local, Path, Peer, Service, TunnelAddr, Workload, canonical_ip,
};
use crate::node::account::Account;
use crate::node::carry::{self, Carrying, Joined};
use crate::node::error::Error;
use crate::node::kept::Seat;
use crate::node::live::Metered;
use crate::node::places::Place;
use crate::node::pod::Pod;
use crate::node::refusing::TooMany;
use crate::node::same_node::{Announcement, Beside};
use crate::node::sources::Tunnelled;
use crate::node::worker::{Stage, Worker};
use crate::node::world::World;
use crate::sys::socket::AppSocket;
use crate::task;
use crate::tunnel::{self, Request, Status};

/// Spawns the task of one connection to the pod's tunnel port, if there is room for it.
pub(crate) fn serve(worker: Rc<Worker>, pod: Rc<Pod>, captured: Captured) {
    let (source, to) = (captured.source, captured.original_dst.get());
    if let Some(announcement) = worker.shared.announcements.take(source, to) {
        let seat = worker.kept.claim(source, to);
        return beside(worker, pod, captured, announcement, seat);
    }
    let Some(own) = worker.sources.tunnel(source.ip(), pod.netns.cookie()) else {
        return worker.turned_away(&pod, source, TooMany::Tunnels);
    };
    let Some(place) = pod.share.admit() else {
        return worker.turned_away(&pod, source, TooMany::OfPod);
    };
    task::spawn_local("tunnel", streams(worker, pod, captured, (own, place))).detach();
}

/// Spawns the task of one connection from a pod of this node, if there is room for it. With a seat,
/// both ends are here.
pub(crate) fn beside(
    worker: Rc<Worker>,
    pod: Rc<Pod>,
    captured: Captured,
    announcement: Announcement,
    seat: Option<Seat>,
) {
    let way = Direction::Inbound;
    let Some(room) = worker.room(&pod, way, captured.source) else {
        // Told before the reset that lets the other side look.
        let _ = announcement.refused.set(Error::Overloaded.outcome());
        return;
    };
    let account = Account::open(&worker, &pod, way, captured.source, room);
    let arriving = same_node(worker, pod, (captured, seat), announcement, account);
    carry::spawn("same node", arriving);
}

/// A tunnel: its handshake, then its streams, each on its own.
async fn streams(
    worker: Rc<Worker>,
    pod: Rc<Pod>,
    captured: Captured,
    _counted: (Tunnelled, Place),
) {
    let ends = Ends {
        source: captured.source,
        via: TunnelAddr::new(captured.original_dst.get()),
    };
    let source = captured.source;
    let handshake = handshake(&worker, &pod, captured.socket);
    // Boxed, because this future lives as long as the tunnel.
    let handshake = Box::pin(worker.handshakes.in_turn(source.ip(), handshake));
    let mut incoming = match handshake.await {
        Ok(incoming) => incoming,
        Err(error) => {
            worker.handshake_failed(&pod, source, &error);
            return;
        }
    };
    let peer = incoming.peer().clone();
    let _listed = Counted::one(&worker);
    let ending = worker.ending(&pod);
    let mut draining = false;
    loop {
        let next = tokio::select! {
            next = incoming.next() => next,
            () = ending.reached(Stage::Begun), if !draining => {
                incoming.drain();
                draining = true;
                continue;
            }
            () = ending.reached(Stage::Over), if draining => return,
        };
        match next {
            Some(Ok(request)) => {
                let way = Direction::Inbound;
                let Some(room) = worker.room(&pod, way, source) else {
                    request.refuse(Error::Overloaded.status());
                    continue;
                };
                let account = Account::open(&worker, &pod, way, source, room);
                let pod = (pod.clone(), account);
                let stream = stream(worker.clone(), pod, request, peer.clone(), ends);
                carry::spawn("inbound stream", stream);
            }
            Some(Err(error)) => {
                tracing::debug!(error = %error, src.addr = %source, pod = %pod.name, "tunnel ended");
                return;
            }
            None => return,
        }
    }
}

/// The two ends of a tunnel.
#[derive(Clone, Copy)]
struct Ends {
    /// The client's side, the address of its pod.
    source: SocketAddr,
    /// Our side, the address of this pod.
    via: TunnelAddr,
}

/// One inbound tunnel in the gauge.
struct Counted(Rc<Worker>);

impl Counted {
    fn one(worker: &Rc<Worker>) -> Self {
        worker.shared.metrics.daemon.tunnels.inbound.inc();
        worker.shared.metrics.daemon.tunnels_opened.inbound.inc();
        Self(worker.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.shared.metrics.daemon.tunnels.inbound.dec();
    }
}

async fn handshake(
    worker: &Rc<Worker>,
    pod: &Rc<Pod>,
    socket: AppSocket,
) -> Result<tunnel::Incoming, Error> {
    let identity = {
        let world = worker.world();
        world
            .pod(&pod.uid)
            .ok_or(Error::PodUnknown)?
            .workload
            .identity
            .clone()
    };
    let certificate = worker.certificate(&identity).await?;
    let config = worker.server_config(&certificate);
    let limits = &worker.shared.limits;
    let socket = socket.into_tcp();
    limits
        .congestion
        .settle(&pod.netns, &SockRef::from(&socket));
    Ok(tunnel::accept(socket, config, limits).await?)
}

/// One stream of a tunnel: one connection of an application.
async fn stream(
    worker: Rc<Worker>,
    (pod, account): (Rc<Pod>, Account),
    request: Request,
    peer: Identity,
    ends: Ends,
) -> Option<Carrying> {
    account.via(ends.via);
    let joined = arrive(&worker, &pod, request, peer, ends, &account).await;
    account.settle(joined)
}

async fn arrive(
    worker: &Rc<Worker>,
    pod: &Rc<Pod>,
    mut request: Request,
    peer: Identity,
    ends: Ends,
    account: &Account,
) -> Result<Joined, Error> {
    let world = worker.world();
    let permit = match permit(worker, pod, &request, peer, ends, &world, account) {
        Ok(permit) => permit,
        Err(error) => {
            request.refuse(error.status());
            return Err(error);
        }
    };
    drop(world);
    let live = account.permitted(permit);
    let joining = pin!(async {
        let permit = &live.permit;
        // A stream that is reset is no stream any more, and no limit counts it: its dial must not
        // go on, or a peer could have any number of them.
        let dialled = tokio::select! {
            dialled = deliver::dial(permit, &pod.netns, Some(ends.source.ip())) => dialled,
            gone = request.abandoned() => return Err(gone.into()),
        };
        let app = match dialled {
            Ok(app) => app,
            Err(error) => {
                request.refuse(Status::DialFailed);
                return Err(error.into());
            }
        };
        let stream = request.accept()?;
        let (app, meter) = (app, Metered::from_destination(live));
        Ok(Joined::Relay(deliver::relay(permit, app, stream, meter)))
    });
    live.unless_ended(joining).await
}

fn permit(
    worker: &Worker,
    pod: &Pod,
    request: &Request,
    peer: Identity,
    ends: Ends,
    world: &World,
    account: &Account,
) -> Result<crate::authorize::Permit, Error> {
    let head = request.head();
    let to = head.authority().map_err(Error::BadRequest)?;
    account.dialled(to);
    let local = world.pod(&pod.uid).ok_or(Error::PodUnknown)?;
    // A pod may have two addresses. The client's is of the family by which it came, and only the
    // same family's can be reached from it.
    if canonical_ip(to.ip()) != ends.via.ip() {
        return Err(Error::NotThisPod { asked: to });
    }
    if Port::is_ours(to.port()) {
        return Err(Error::OwnPort { port: to.port() });
    }
    let service = head
        .host()
        .and_then(|host| service_named(world, worker, host, &local.workload));
    let source = ends.source;
    let workload = source_workload(world, source, &peer);
    let flow = Flow {
        direction: Direction::Inbound,
        source: Peer {
            addr: source,
            identity: Some(peer),
            workload,
        },
        destination: Local {
            addr: to,
            workload: Some(local.workload.clone()),
            service,
        },
        path: Path::Tunnel,
    };
    worker.decide(&local.evaluator, flow, account)
}

/// The workload at the source's address, if it is one that could own the proven identity: the
/// certificate says who it is, the address only what to call it.
fn source_workload(world: &World, source: SocketAddr, peer: &Identity) -> Option<Arc<Workload>> {
    let workload = world.snapshot.workload_at(canonical_ip(source.ip()))?;
    (workload.identity == *peer).then(|| workload.clone())
}

/// The service a tunnel's client says it dialled, if it really selects this pod.
fn service_named(
    world: &World,
    worker: &Worker,
    host: &str,
    workload: &Workload,
) -> Option<Arc<Service>> {
    let name = host
        .strip_suffix(&*worker.shared.cluster_domain)?
        .strip_suffix(".svc.")?;
    let (name, namespace) = name.split_once('.')?;
    let service = world.snapshot.service(namespace, name)?;
    world
        .snapshot
        .selects(service, workload)
        .then(|| service.clone())
}

/// A connection of this daemon, from another pod of this node.
async fn same_node(
    worker: Rc<Worker>,
    pod: Rc<Pod>,
    (captured, seat): (Captured, Option<Seat>),
    announcement: Announcement,
    account: Account,
) -> Option<Carrying> {
    let Captured {
        socket,
        source,
        original_dst: via,
    } = captured;
    let mut near = Some((socket, seat));
    account.dials();
    account.via(TunnelAddr::new(via.get()));
    let refused = announcement.refused.clone();
    let joined = arrive_same_node(&worker, &pod, &mut near, source, announcement, &account).await;
    if let (Err(error), Some(_)) = (&joined, &near) {
        // Told before the reset that lets the other side look.
        let _ = refused.set(error.outcome());
    }
    drop(near);
    account.settle(joined)
}

async fn arrive_same_node(
    worker: &Rc<Worker>,
    pod: &Rc<Pod>,
    near: &mut Option<(AppSocket, Option<Seat>)>,
    source: SocketAddr,
    announcement: Announcement,
    account: &Account,
) -> Result<Joined, Error> {
    let Announcement {
        identity,
        workload,
        to,
        service,
        ..
    } = announcement;
    account.dialled(to.get());
    let permit = {
        let world = worker.world();
        let local = world.pod(&pod.uid).ok_or(Error::PodUnknown)?;
        let flow = Flow {
            direction: Direction::Inbound,
            source: Peer {
                addr: source,
                identity: Some(identity),
                workload: Some(workload),
            },
            destination: Local {
                addr: to.get(),
                workload: Some(local.workload.clone()),
                service,
            },
            path: Path::SameNode,
        };
        worker.decide(&local.evaluator, flow, account)?
    };
    let live = account.permitted(permit);
    let joining = pin!(async {
        let permit = &live.permit;
        let app = deliver::dial(permit, &pod.netns, Some(source.ip())).await?;
        let (near, seat) = near
            .take()
            .expect("put there by the caller, taken here alone");
        let mut splice = deliver::splice(permit, near, app, Metered::from_source(live));
        let way = seat.map(|(way, half)| {
            splice.sew(Side::Near, half);
            way
        });
        Ok(Joined::Beside(splice, Box::new(Beside::accepting(way))))
    });
    live.unless_ended(joining).await
}
