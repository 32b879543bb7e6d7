//! Policies that do not do what their author thinks.

use crate::check::finding::{Check, Finding, State, count};
use crate::check::rules::principals::{Doubt, Known};
use crate::check::rules::view::View;
use crate::mesh::policy::{
    AuthorizationPolicy, Notice, NoticeKind, PeerAuthentication, PolicyName,
};
use crate::mesh::{Enrolment, Selector};

pub(super) const GROUP: &str = "policies";

const READABLE: Check = Check {
    group: GROUP,
    name: "policies are understood",
    hint: "mend the field that is named: until then the policy refuses every flow to what it binds",
    link: "README.md#what-it-does-not-do",
};
const LAYER: Check = Check {
    group: GROUP,
    name: "policies ask for nothing of HTTP",
    hint: "say it with principals, namespaces, addresses and ports: nothing else is known of a TCP \
           connection",
    link: "README.md#what-it-does-not-do",
};
const MATCHES: Check = Check {
    group: GROUP,
    name: "every part of a policy can match, and does what it says",
    hint: "mend or remove the part that is named",
    link: "README.md#what-it-does-not-do",
};
const BINDS: Check = Check {
    group: GROUP,
    name: "policies bind pods of the mesh",
    hint: "compare the selector with the labels of pods, and label the namespace adit.mesh/mode=ambient: \
           policies are enforced in the mesh alone",
    link: "README.md#use-it",
};
const DOMAIN: Check = Check {
    group: GROUP,
    name: "principals are of the trust domain of the mesh",
    hint: "write the trust domain that --trust-domain names: others match nobody, so that an ALLOW rule \
           refuses its callers and a DENY rule lets them pass",
    link: "README.md#use-it",
};
const NAMES: Check = Check {
    group: GROUP,
    name: "namespaces and service accounts in rules are there",
    hint: "look for a slip of the pen: a rule that names nobody matches nobody",
    link: "README.md#use-it",
};
const PLACE: Check = Check {
    group: GROUP,
    name: "policies for the whole mesh are in its root namespace",
    hint: "move them to the root namespace, or start daemons with --root-namespace: elsewhere they bind \
           their own namespace alone",
    link: "README.md#use-it",
};

/// Where Istio has its policies for the whole mesh unless told otherwise.
const ISTIO_ROOT: &str = "istio-system";

/// What both kinds have.
struct Common<'v> {
    kind: &'static str,
    name: &'v PolicyName,
    selector: Option<&'v Selector>,
    notices: &'v [Notice],
}

pub(crate) fn check(view: &View<'_>) -> Vec<Finding> {
    let (authorization, peers) = match (&view.cluster.authorization, &view.cluster.peers) {
        (Ok(authorization), Ok(peers)) => (authorization, peers),
        (Err(why), _) | (_, Err(why)) => return vec![READABLE.skip(why)],
    };
    let all: Vec<_> = authorization
        .iter()
        .map(of_authorization)
        .chain(peers.iter().map(of_peer))
        .collect();
    let noticed = |kinds: &[NoticeKind]| {
        let each = all
            .iter()
            .flat_map(|policy| policy.notices.iter().map(move |n| (policy, n)));
        let each = each.filter(|(_, notice)| kinds.contains(&notice.kind));
        each.map(|(policy, notice)| format!("{policy}: {}", notice.text))
            .collect::<Vec<_>>()
    };
    let many = |what: &'static str| move |many: usize| format!("{} {what}", count(many, "part"));
    let (domain, names) = doubts(view, authorization);
    vec![
        READABLE.none(
            State::Fail,
            noticed(&[NoticeKind::NotUnderstood]),
            match all.len() {
                1 => "1 policy".to_owned(),
                many => format!("{many} policies"),
            },
            |many| format!("{many} not understood"),
        ),
        LAYER.none(
            State::Warn,
            noticed(&[NoticeKind::NeedsHttp]),
            "they ask for none",
            many("that layer 4 does not serve"),
        ),
        MATCHES.none(
            State::Warn,
            noticed(&[NoticeKind::NeverMatches, NoticeKind::OtherEffect]),
            "they do",
            many("without effect, or with another"),
        ),
        binds(view, &all),
        domain,
        names,
        place(view, &all),
    ]
}

impl std::fmt::Display for Common<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

fn of_authorization(policy: &AuthorizationPolicy) -> Common<'_> {
    Common {
        kind: "AuthorizationPolicy",
        name: &policy.name,
        selector: policy.selector.as_ref(),
        notices: &policy.notices,
    }
}

fn of_peer(policy: &PeerAuthentication) -> Common<'_> {
    Common {
        kind: "PeerAuthentication",
        name: &policy.name,
        selector: policy.selector.as_ref(),
        notices: &policy.notices,
    }
}

fn binds(view: &View<'_>, all: &[Common<'_>]) -> Finding {
    let pods = match &view.pods {
        Ok(pods) => pods,
        Err(why) => return BINDS.skip(why),
    };
    let root = &view.mesh.root_namespace;
    let items = all.iter().filter_map(|policy| {
        let wide = policy.name.namespace() == root;
        // A policy for everybody is ready for whoever comes.
        if wide && policy.selector.is_none() {
            return None;
        }
        let bound = pods.iter().filter(|(pod, _)| {
            (wide || pod.namespace == policy.name.namespace())
                && policy
                    .selector
                    .is_none_or(|selector| selector.matches(&pod.labels))
        });
        let (mut some, mut enrolled) = (false, false);
        for (_, enrolment) in bound {
            some = true;
            enrolled |= *enrolment == Enrolment::Enrolled;
        }
        let why = match (some, enrolled) {
            (_, true) => return None,
            (true, false) => "binds pods of which none is in the mesh: it is not enforced",
            (false, _) if policy.selector.is_some() => "its selector matches no pod",
            (false, _) => "there are no pods in its namespace",
        };
        Some(format!("{policy}: {why}"))
    });
    BINDS.none(State::Warn, items.collect(), "they do", |many| {
        format!(
            "{} that bind{} none",
            policies(many),
            if many == 1 { "s" } else { "" }
        )
    })
}

fn policies(many: usize) -> String {
    match many {
        1 => "1 policy".to_owned(),
        many => format!("{many} policies"),
    }
}

/// Whom rules name: those of another trust domain, and those that are not there.
fn doubts(view: &View<'_>, all: &[AuthorizationPolicy]) -> (Finding, Finding) {
    let domain = &view.mesh.settings.trust_domain;
    let namespaces = match &view.namespaces {
        Ok(namespaces) => namespaces.keys().copied(),
        Err(why) => return (DOMAIN.skip(why), NAMES.skip(why)),
    };
    let accounts = view.cluster.accounts.as_ref();
    let known = Known::new(domain, namespaces, accounts.ok().map(Vec::as_slice));
    let (mut foreign, mut absent) = (Vec::new(), Vec::new());
    for policy in all {
        for (at, doubt) in known.doubts(policy) {
            let said = format!("AuthorizationPolicy {}: {at}: {doubt}", policy.name);
            match doubt {
                Doubt::Domain(_) => foreign.push(said),
                Doubt::Absent(_) => absent.push(said),
            }
        }
    }
    let good = match accounts {
        Ok(_) => "they are".to_owned(),
        Err(why) => format!("namespaces are; of service accounts nothing is known: {why}"),
    };
    (
        DOMAIN.none(State::Fail, foreign, domain.as_str(), |many| {
            format!("{} of another one than {domain}", count(many, "principal"))
        }),
        NAMES.none(State::Warn, absent, good, |many| {
            format!("{} that nobody has", count(many, "name"))
        }),
    )
}

fn place(view: &View<'_>, all: &[Common<'_>]) -> Finding {
    let root = &view.mesh.root_namespace;
    let items = all
        .iter()
        .filter(|policy| policy.name.namespace() == ISTIO_ROOT && root != ISTIO_ROOT);
    PLACE.none(
        State::Warn,
        items.map(ToString::to_string).collect(),
        format!("which is {root}"),
        |many| {
            format!(
                "{} in {ISTIO_ROOT}, and the root namespace is {root}",
                policies(many)
            )
        },
    )
}
