//! One connection leaving a pod, told from start to end.
//!
//! Policy is enforced where a connection arrives; what is decided here is the way it takes:
//!
//! | destination | way |
//! |---|---|
//! | a mesh workload on another node | a tunnel to its daemon |
//! | a mesh workload on this node | plain TCP to its tunnel port, announced to our own listener |
//! | the pod itself, by a service | straight to its application, after its own policy |
//! | a workload outside the mesh, or an endpoint that is no pod | plain TCP |
//! | an address the index does not know | plain TCP, to exactly that address |
//!
//! A mesh workload is never reached in another way than the first three: a failure there resets
//! the application's connection.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::authorize;
use crate::capture::{Captured, Port};
use crate::deliver::{self, Half, Side};
use crate::mesh::{
    Direction, Flow, Local, OriginalDst, Path, Peer, PodAddr, Route, Service, TunnelAddr, Workload,
};
use crate::node::account::Account;
use crate::node::carry::{self, Carrying, Joined};
use crate::node::config::SameNode;
use crate::node::error::Error;
use crate::node::inbound;
use crate::node::kept::{Idle, Key, Way};
use crate::node::live::{Connection, Metered};
use crate::node::pod::Pod;
use crate::node::same_node::{Announcement, Beside};
use crate::node::worker::Worker;
use crate::node::world::LocalPod;
use crate::sys::socket::AppSocket;
use crate::tunnel::{ConnectHead, Origin};

/// Spawns the task of one such connection, if there is room for it.
pub(crate) fn serve(worker: Rc<Worker>, pod: Rc<Pod>, captured: Captured) {
    let way = Direction::Outbound;
    if let Some(room) = worker.room(&pod, way, captured.source) {
        let account = Account::open(&worker, &pod, way, captured.source, room);
        carry::spawn("outbound", carry(worker, pod, captured, account));
    }
}

/// Brings one captured connection to wherever it was going.
async fn carry(
    worker: Rc<Worker>,
    pod: Rc<Pod>,
    captured: Captured,
    account: Account,
) -> Option<Carrying> {
    let joined = route(&worker, &pod, captured, &account).await;
    account.settle(joined)
}

async fn route(
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
    let captured = Taken { socket, source };
    account.dialled(to.get());
    // The world is let go before anything is waited for: a connection that lives for days must not
    // keep the index of its first moment.
    let (local, route, served) = {
        let world = worker.world();
        let local = world.pod(&pod.uid).ok_or(Error::PodUnknown)?.clone();
        account.source(&local.workload);
        let route = world.snapshot.resolve(&local.workload, to, worker.draw())?;
        let served = match &route {
            Route::Mesh { workload, .. } => world.pod(&workload.uid).is_some_and(|pod| pod.served),
            _ => false,
        };
        (local, route, served)
    };
    let leaving = Leaving {
        worker,
        pod,
        local: &local,
        account,
    };
    match route {
        Route::Mesh {
            workload,
            service,
            to,
            via,
        } => {
            if Port::is_ours(to.port()) {
                return Err(Error::OwnPort { port: to.port() });
            }
            let target = Target {
                workload,
                service,
                to,
                via,
                served,
            };
            leaving.to_mesh(target, captured).await
        }
        Route::Plain {
            workload,
            service,
            to,
        } => leaving.plain(workload, service, to.get(), captured).await,
        Route::Unknown { to } => leaving.unknown(to, captured).await,
    }
}

/// The captured connection: reset, should it not come to a relay.
struct Taken {
    socket: AppSocket,
    source: SocketAddr,
}

/// A mesh workload that was chosen as destination.
struct Target {
    workload: Arc<Workload>,
    service: Option<Arc<Service>>,
    to: PodAddr,
    via: TunnelAddr,
    /// Whether it is a pod of this node that is captured now.
    served: bool,
}

/// A connection on its way out.
struct Leaving<'a> {
    worker: &'a Rc<Worker>,
    pod: &'a Rc<Pod>,
    local: &'a LocalPod,
    account: &'a Account,
}

impl Leaving<'_> {
    async fn to_mesh(&self, target: Target, captured: Taken) -> Result<Joined, Error> {
        let same_node = *target.workload.node == *self.worker.shared.node;
        if target.workload.uid == self.local.workload.uid {
            return self.to_itself(target, captured).await;
        }
        let direct = self.worker.shared.same_node == SameNode::Direct;
        // Another daemon may be the one to accept there: what it can recognise is a tunnel.
        if same_node && direct && self.worker.is_alone() {
            if !target.served {
                return Err(Error::DestinationNotServed);
            }
            return self.same_node(target, captured).await;
        }
        self.tunnel(target, captured).await
    }

    async fn tunnel(&self, target: Target, captured: Taken) -> Result<Joined, Error> {
        let source = self.local.workload.identity.clone();
        let Target {
            workload,
            service,
            to,
            via,
            ..
        } = target;
        let host = service
            .as_deref()
            .map(|service| self.worker.shared.hostname(service));
        let head = ConnectHead::new(to.get())
            .forwarded(captured.source, host)
            .with_baggage(self.local.baggage.clone());
        let flow = self.flow(&captured, Some(workload), service, to.get(), Path::Tunnel);
        let live = self.account.permitted(authorize::outbound(flow));
        let joining = pin!(async {
            let certificate = self.worker.certificate(&source).await?;
            let origin = Origin {
                netns: self.pod.netns.clone(),
                address: captured.source.ip(),
                certificate,
            };
            self.account.via(via);
            let pool = &self.worker.pool;
            let permit = &live.permit;
            let stream = pool.open(permit, &origin, to, via, &head).await?;
            let (app, meter) = (captured.socket, Metered::from_source(live));
            Ok(Joined::Relay(deliver::relay(permit, app, stream, meter)))
        });
        live.unless_ended(joining).await
    }

    /// Across the pods' veths without TLS and HTTP/2, to our own listener in the other pod.
    async fn same_node(&self, target: Target, captured: Taken) -> Result<Joined, Error> {
        let Target {
            workload,
            service,
            to,
            via,
            ..
        } = target;
        let to_pod = self.worker.served(&workload.uid);
        let announcement = Announcement {
            identity: self.local.workload.identity.clone(),
            workload: self.local.workload.clone(),
            to,
            service: service.clone(),
            refused: Arc::default(),
        };
        let flow = self.flow(&captured, Some(workload), service, to.get(), Path::SameNode);
        self.account.dials();
        let live = self.account.permitted(authorize::outbound(flow));
        self.account.via(via);
        self.worker.shared.metrics.daemon.same_node.inc();
        let (netns, from) = (&self.pod.netns, captured.source.ip());
        let key = to_pod.as_ref().map(|pod| Key {
            from: netns.cookie(),
            source: from,
            to: pod.netns.cookie(),
            via,
        });
        let joining = pin!(async {
            if let (Some(pod), Some(key)) = (to_pod, key)
                && let Some(idle) = self.worker.kept.take(key, Instant::now())
            {
                return Ok(self.again(live, captured, (pod, idle), announcement));
            }
            let dialling = self.worker.dialling();
            let announcements = &self.worker.shared.announcements;
            let announce = |local| {
                let announced = announcements.announce(local, via.get(), announcement.clone())?;
                let born = Instant::now();
                let way = key.map(|key| Way { key, local, born });
                let seat = way.map(|way| (way, self.worker.kept.seat(way)));
                Some((announced, seat))
            };
            let lane = self.worker.lane;
            let permit = &live.permit;
            let dial = deliver::dial_announced(permit, netns, from, via.get(), lane, announce);
            let (socket, announced) = dial.await.map_err(|error| {
                // The other side may have refused before this one knew that it was connected.
                match announcement.refused.get() {
                    Some(outcome) => Error::RefusedBeside(*outcome),
                    None => error.into(),
                }
            })?;
            drop(dialling);
            let (near, meter) = (captured.socket, Metered::from_source(live));
            let mut splice = deliver::splice(permit, near, socket, meter);
            let (announced, seat) = announced;
            let (way, seated) = match seat {
                Some((way, (seated, half))) => {
                    splice.sew(Side::Far, half);
                    (Some(way), Some(seated))
                }
                None => (None, None),
            };
            let refused = announcement.refused.clone();
            let beside = Beside::dialling(Some((announced, seated)), refused, way);
            Ok(Joined::Beside(splice, Box::new(beside)))
        });
        live.unless_ended(joining).await
    }

    /// The same, on a connection that was kept from an earlier one.
    fn again(
        &self,
        live: &Rc<Connection>,
        captured: Taken,
        (pod, idle): (Rc<Pod>, Idle),
        announcement: Announcement,
    ) -> Joined {
        let Idle {
            way,
            dialled,
            accepted,
        } = idle;
        let (own, other) = Half::pair_again();
        let refused = announcement.refused.clone();
        let arriving = Captured {
            socket: accepted,
            source: way.local,
            original_dst: OriginalDst::new(way.key.via.get()),
        };
        let seat = Some((way, other));
        inbound::beside(self.worker.clone(), pod, arriving, announcement, seat);
        let meter = Metered::from_source(live);
        let mut splice = deliver::splice(&live.permit, captured.socket, dialled, meter);
        splice.sew(Side::Far, own);
        let beside = Beside::dialling(None, refused, Some(way));
        Joined::Beside(splice, Box::new(beside))
    }

    /// A pod that reached itself through a service: both ends are here, so is its policy.
    async fn to_itself(&self, target: Target, captured: Taken) -> Result<Joined, Error> {
        let Target {
            workload,
            service,
            to,
            ..
        } = target;
        let mut flow = self.flow(&captured, Some(workload), service, to.get(), Path::SameNode);
        flow.direction = Direction::Inbound;
        let evaluator = &self.local.evaluator;
        let permit = self.worker.decide(evaluator, flow, self.account)?;
        self.dial_and_splice(permit, captured).await
    }

    async fn plain(
        &self,
        workload: Option<Arc<Workload>>,
        service: Option<Arc<Service>>,
        to: SocketAddr,
        captured: Taken,
    ) -> Result<Joined, Error> {
        let flow = self.flow(&captured, workload, service, to, Path::Plain);
        self.dial_and_splice(authorize::outbound(flow), captured)
            .await
    }

    async fn unknown(&self, to: OriginalDst, captured: Taken) -> Result<Joined, Error> {
        self.worker.shared.metrics.daemon.unknown_destinations.inc();
        self.plain(None, None, to.get(), captured).await
    }

    async fn dial_and_splice(
        &self,
        permit: authorize::Permit,
        captured: Taken,
    ) -> Result<Joined, Error> {
        self.account.dials();
        let live = self.account.permitted(permit);
        let joining = pin!(async {
            let from = captured.source.ip();
            let permit = &live.permit;
            let socket = deliver::dial(permit, &self.pod.netns, Some(from)).await?;
            let (near, meter) = (captured.socket, Metered::from_source(live));
            Ok(Joined::Splice(deliver::splice(permit, near, socket, meter)))
        });
        live.unless_ended(joining).await
    }

    fn flow(
        &self,
        captured: &Taken,
        workload: Option<Arc<Workload>>,
        service: Option<Arc<Service>>,
        to: SocketAddr,
        path: Path,
    ) -> Flow {
        let source = &self.local.workload;
        Flow {
            direction: Direction::Outbound,
            source: Peer {
                addr: captured.source,
                identity: path.authenticated().then(|| source.identity.clone()),
                workload: Some(source.clone()),
            },
            destination: Local {
                addr: to,
                workload,
                service,
            },
            path,
        }
    }
}
