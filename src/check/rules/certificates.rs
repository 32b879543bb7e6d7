//! The roots of the mesh: published, in force for long enough, rotated to the end.

use std::time::{Duration, SystemTime};

use crate::check::facts::{Root, SecretNotes};
use crate::check::finding::{Check, Finding, State, count};
use crate::check::rules::view::View;

pub(super) const GROUP: &str = "certificates";

const ROOTS: Check = Check {
    group: GROUP,
    name: "the roots are published, and in force",
    hint: "exchange the root while it is in force: `adit ca stage`, later `promote` and `retire`; one that \
           you have brought is exchanged where it comes from",
    link: "README.md#use-it",
};
const DOMAIN: Check = Check {
    group: GROUP,
    name: "the roots are of the trust domain of the daemons",
    hint: "let daemons and authority have one --trust-domain, or give the authority another root",
    link: "README.md#use-it",
};
const ROTATION: Check = Check {
    group: GROUP,
    name: "no exchange of roots was left half done",
    hint: "`adit ca status` says what comes next",
    link: "README.md#use-it",
};
const NODES: Check = Check {
    group: GROUP,
    name: "the certificates of nodes are in force",
    hint: "",
    link: "",
};

/// A root that ends sooner should be exchanged now.
const SOON: Duration = Duration::from_hours(60 * 24);
/// A rotation that takes longer has been forgotten.
const FORGOTTEN: Duration = Duration::from_hours(14 * 24);

pub(crate) fn check(view: &View<'_>) -> Vec<Finding> {
    let cluster = view.cluster;
    let now = view.facts.now;
    let name = format!("{}/{}", view.facts.place.namespace, view.facts.place.bundle);
    let mut findings = match &cluster.roots {
        Err(why) => vec![ROOTS.skip(why)],
        Ok(None) => vec![match view.control {
            None => ROOTS.skip(format!(
                "there is no ConfigMap {name}: the authority is another"
            )),
            Some(_) => ROOTS.fail(format!(
                "there is no ConfigMap {name}, though there is adit control"
            )),
        }],
        Ok(Some(roots)) => vec![in_force(roots, now), of_domain(view, roots)],
    };
    findings.push(match &cluster.secret {
        Err(why) => ROTATION.skip(why),
        Ok(None) => ROTATION.pass("the authority's key is not in a Secret of Adit's"),
        Ok(Some(notes)) => rotation(*notes, now),
    });
    if view.facts.node.is_none() {
        findings.push(NODES.skip(
            "a node alone knows them: run `adit check` in a daemon's pod (kubectl exec), or see the \
             metrics of daemons",
        ));
    }
    findings
}

fn in_force(roots: &[Root], now: SystemTime) -> Finding {
    if roots.is_empty() {
        return ROOTS.fail("the ConfigMap has no certificate that can be read");
    }
    let left = |root: &Root| root.ends.and_then(|ends| ends.duration_since(now).ok());
    let longest = roots.iter().filter_map(left).max();
    let items = roots
        .iter()
        .filter(|root| left(root).is_none_or(|left| left < SOON));
    let items = items.map(|root| match (root.ends, left(root)) {
        (None, _) => format!("{}: its end cannot be read", root.subject),
        (_, None) => format!("{}: is over", root.subject),
        (_, Some(left)) => format!("{}: ends in {}", root.subject, days(left)),
    });
    let items: Vec<_> = items.collect();
    let state = match longest {
        None => State::Fail,
        Some(_) => State::Warn,
    };
    let good = longest.map_or_else(String::new, |left| {
        format!(
            "{}, the last ends in {}",
            count(roots.len(), "root"),
            days(left)
        )
    });
    ROOTS.none(state, items, good, |_| match longest {
        None => "no root is in force: nobody is believed any more".to_owned(),
        Some(_) => "a root ends soon, or has ended".to_owned(),
    })
}

fn of_domain(view: &View<'_>, roots: &[Root]) -> Finding {
    let domain = view.mesh.settings.trust_domain.as_str();
    let other = roots.iter().filter_map(|root| {
        let found = root
            .trust_domain
            .as_deref()
            .filter(|found| *found != domain)?;
        Some(format!("{}: {found}", root.subject))
    });
    DOMAIN.none(State::Fail, other.collect(), domain, |many| {
        format!("{} of another one than {domain}", count(many, "root"))
    })
}

fn rotation(notes: SecretNotes, now: SystemTime) -> Finding {
    let (what, since) = match (notes.promoted, notes.staged) {
        (Some(since), _) => ("the old root is trusted still", since),
        (_, Some(since)) => ("a new root is trusted, and does not sign yet", since),
        _ => return ROTATION.pass("none is under way"),
    };
    let age = now.duration_since(since).unwrap_or_default();
    let found = format!("{what}, since {}", days(age));
    if age > FORGOTTEN {
        ROTATION.warn(found)
    } else {
        ROTATION.pass(found)
    }
}

fn days(time: Duration) -> String {
    let hours = time.as_secs() / 3600;
    if hours < 48 {
        format!("{hours} h")
    } else {
        format!("{} days", hours / 24)
    }
}
