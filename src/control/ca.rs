//! `adit ca`: shows and exchanges the root of a cluster's authority, from anywhere that reaches the
//! API server.
//!
//! A step changes the Secret and nothing else; every replica of `adit control` does the rest within
//! seconds. The Secret is written against the version that was judged, so that of two people who do
//! a step at once, one is told. The time is the API server's: a step that is allowed too early cuts
//! workloads off, and the clock of a workstation may say anything.

use std::io::{self, Write};
use std::time::SystemTime;

use http::Request;
use http::header::DATE;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::fmt::rfc2822;
use kube::Client;
use kube::api::{Api, PostParams};
use kube::client::Body;
use tokio::runtime::Builder;

use crate::cluster::Access;
use crate::control::kube::{self as api, Kube};
use crate::control::rotation::{LAG, Refusal};
use crate::control::store::{Keys, Published, Root, Unreadable, ends, fingerprint, one};
use crate::mesh::TrustDomain;
use crate::pki::authority::Flaw;
use crate::telemetry::timestamp;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Show how the roots stand.
    Status,
    /// Let a new root be trusted.
    Stage,
    /// Let the new root sign.
    Promote,
    /// Forget the old root.
    Retire,
}

/// Where the authority lies.
#[derive(Clone, Debug)]
pub struct Place {
    /// How the API server is reached.
    pub access: Access,
    /// The namespace of both.
    pub namespace: String,
    /// The Secret's name.
    pub secret: String,
    /// The ConfigMap's name.
    pub bundle: String,
}

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules of a rotation.
    #[error("{0}; nothing was changed")]
    Refused(String),
    /// The API server.
    #[error("the Kubernetes API did not do it")]
    Api(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Its answer has no time.
    #[error(
        "the Kubernetes API's answer says no time (header Date): ask it without a proxy between"
    )]
    Clock,
    /// Somebody else was quicker.
    #[error("somebody else has changed the Secret meanwhile: look with `adit ca status`")]
    Conflict,
    /// There is none.
    #[error(
        "there is no Secret {0}: name its namespace with --namespace; an authority that was brought \
         by the user (adit control --ca dir:PATH) is rotated where it comes from"
    )]
    Absent(String),
    /// It is not one of ours, or was damaged.
    #[error("the Secret {0} cannot be used: {1}")]
    Unreadable(String, String),
    /// A root could not be made.
    #[error("cannot make a root")]
    Crypto(#[source] rcgen::Error),
    /// The answer could not be printed, or the runtime not be made.
    #[error("cannot print the answer")]
    Print(#[from] io::Error),
}

fn refused(refusal: &Refusal) -> Error {
    let until = match refusal {
        Refusal::Unknown { until } | Refusal::InUse { until } => {
            format!("; possible from {} on", timestamp(*until))
        }
        _ => String::new(),
    };
    Error::Refused(format!("{refusal}{until}"))
}

/// Does a step, and tells what is so now and what comes next.
///
/// # Errors
///
/// [`Error`]; nothing was changed then.
pub fn run(step: Step, place: &Place, to: &mut dyn Write) -> Result<(), Error> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work(step, place, to))
}

async fn work(step: Step, place: &Place, to: &mut dyn Write) -> Result<(), Error> {
    let kube = Kube::new(place.access.clone());
    let secrets = |client| Api::<Secret>::namespaced(client, &place.namespace);
    let name = &place.secret;
    let read = async |client| secrets(client).get_opt(name).await;
    let secret = kube.ask("read the Secret", read).await.map_err(failed)?;
    let mut secret = secret.ok_or_else(|| Error::Absent(format!("{}/{name}", place.namespace)))?;
    let unreadable =
        |cause: String| Error::Unreadable(format!("{}/{name}", place.namespace), cause);
    let keys = Keys::read(&secret).map_err(|cause: Unreadable| unreadable(cause.to_string()))?;
    let maps = |client| Api::<ConfigMap>::namespaced(client, &place.namespace);
    let read = async |client| maps(client).get_opt(&place.bundle).await;
    let map = kube.ask("read the ConfigMap", read).await.map_err(failed)?;
    let published = map.as_ref().map(Published::read).unwrap_or_default();
    let now = clock(&kube).await?;
    let changed = match step {
        Step::Status => None,
        step => Some(change(step, &keys, &published, now)?),
    };
    let Some(changed) = changed else {
        return show(&keys, &published, now, to);
    };
    changed.write(&mut secret);
    let params = PostParams::default();
    let write = async |client| secrets(client).replace(name, &params, &secret).await;
    match kube.ask("write the Secret", write).await {
        Ok(_) => {}
        Err(error) if error.code() == Some(409) => return Err(Error::Conflict),
        Err(error) => return Err(failed(error)),
    }
    writeln!(to, "done: {}", step.did())?;
    show(&changed, &published, now, to)
}

/// The API server's time.
async fn clock(kube: &Kube) -> Result<SystemTime, Error> {
    let ask = async |client: Client| {
        let request = Request::get("/version").body(Body::empty());
        client.send(request.map_err(kube::Error::HttpError)?).await
    };
    let answer = kube.ask("ask for the time", ask).await.map_err(failed)?;
    let date = answer
        .headers()
        .get(DATE)
        .and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| rfc2822::parse(date).ok());
    Ok(date.ok_or(Error::Clock)?.timestamp().into())
}

impl Step {
    fn did(self) -> &'static str {
        match self {
            Self::Status => "shown",
            Self::Stage => "a new root is trusted beside the one that signs",
            Self::Promote => {
                "the new root signs; the old one is trusted still, and its key is gone"
            }
            Self::Retire => "the old root is forgotten",
        }
    }
}

/// The Secret after a step, if the step may be done.
fn change(step: Step, keys: &Keys, published: &Published, now: SystemTime) -> Result<Keys, Error> {
    let standing = keys.standing(published);
    let allowed = match step {
        Step::Status => Ok(()),
        Step::Stage => standing.stage(),
        Step::Promote => standing.promote(now),
        Step::Retire => standing.retire(now),
    };
    allowed.map_err(|refusal| refused(&refusal))?;
    let mut next = keys.clone();
    match step {
        Step::Status => {}
        Step::Stage => {
            let domain = trust_domain(keys).map_err(|flaw| {
                Error::Refused(format!(
                    "the root that signs names no trust domain ({flaw:?})"
                ))
            })?;
            let root = Root::make(&domain, now).map_err(Error::Crypto)?;
            next.staged = Some((root, now));
        }
        Step::Promote => {
            if let Some((root, _)) = next.staged.take() {
                let old = std::mem::replace(&mut next.active, root);
                next.retiring = Some((old.certificate, now));
            }
        }
        Step::Retire => next.retiring = None,
    }
    Ok(next)
}

/// The trust domain that the root in force names, as roots made here do.
fn trust_domain(keys: &Keys) -> Result<TrustDomain, Flaw> {
    // Nothing is named so: the flaw says what is.
    let nowhere = TrustDomain::parse("_").map_err(|_| Flaw::Mismatch)?;
    match keys.authority(&nowhere, SystemTime::now()).err() {
        Some(Flaw::TrustDomain { found }) => {
            TrustDomain::parse(&found).map_err(|_| Flaw::TrustDomain { found })
        }
        Some(flaw) => Err(flaw),
        None => Err(Flaw::Mismatch),
    }
}

fn show(
    keys: &Keys,
    published: &Published,
    now: SystemTime,
    to: &mut dyn Write,
) -> Result<(), Error> {
    let names = [
        ("root.pem", "signs"),
        ("staged.pem", "staged"),
        ("retiring.pem", "retiring"),
    ];
    for (name, certificate) in keys.certificates() {
        let says = names.iter().find(|(file, _)| *file == name);
        let says = says.map_or("", |(_, says)| says);
        let root = one(name, certificate).map(|root| fingerprint(&root));
        let ends = ends(certificate).map_or_else(String::new, timestamp);
        let since = match name {
            "staged.pem" => keys.staged.as_ref().map(|(_, at)| *at),
            "retiring.pem" => keys.retiring.as_ref().map(|(_, at)| *at),
            _ => None,
        };
        let since = since.map_or_else(String::new, |at| format!(", since {}", timestamp(at)));
        writeln!(
            to,
            "{says:<9} {}, ends {ends}{since}",
            root.unwrap_or_default()
        )?;
    }
    let standing = keys.standing(published);
    let next = if standing.staged.is_some() {
        next("promote", standing.promote(now))
    } else if standing.retiring.is_some() {
        next("retire", standing.retire(now))
    } else {
        "`adit ca stage` begins a rotation".to_owned()
    };
    writeln!(to, "next      {next}")?;
    writeln!(
        to,
        "waits     {:?} (the longest certificate) and {:?} for files and clocks",
        keys.longest, LAG
    )?;
    Ok(())
}

fn next(step: &str, may: Result<(), Refusal>) -> String {
    match may {
        Ok(()) => format!("`adit ca {step}`"),
        Err(Refusal::Unknown { until } | Refusal::InUse { until }) => {
            format!("`adit ca {step}` from {} on", timestamp(until))
        }
        Err(Refusal::Unpublished) => format!(
            "`adit ca {step}`, once adit control has published the staged root and nodes have seen it"
        ),
        Err(refusal) => refusal.to_string(),
    }
}

fn failed(error: api::Error) -> Error {
    Error::Api(Box::new(error))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn publish(keys: &Keys, before: &Published, now: SystemTime) -> Published {
        let domain = TrustDomain::parse("example.org").unwrap();
        let authority = keys.authority(&domain, now).unwrap();
        let mut map = ConfigMap::default();
        before.renewed(authority.roots(), now).write(&mut map);
        Published::read(&map)
    }

    #[test]
    fn a_rotation_goes_all_the_way_and_never_drops_a_root_in_use() {
        let domain = TrustDomain::parse("example.org").unwrap();
        let start = SystemTime::now();
        let first = Keys::first(Root::make(&domain, start).unwrap(), DAY);
        let published = publish(&first, &Published::default(), start);
        for step in [Step::Promote, Step::Retire] {
            assert!(change(step, &first, &published, start).is_err());
        }

        let staged = change(Step::Stage, &first, &published, start).unwrap();
        assert!(staged.active == first.active, "the old one signs");
        assert_eq!(trust_domain(&staged).unwrap(), domain);
        let early = change(Step::Promote, &staged, &published, start + 9 * DAY);
        let told = early.err().unwrap().to_string();
        assert!(told.contains("not in the published bundle"), "{told}");

        let published = publish(&staged, &published, start);
        let early = change(Step::Promote, &staged, &published, start + DAY);
        let told = early.err().unwrap().to_string();
        assert!(told.contains("; possible from "), "{told}");
        let then = start + DAY + LAG;
        let promoted = change(Step::Promote, &staged, &published, then).unwrap();
        let new = staged.staged.as_ref().map(|(root, _)| root);
        assert!(Some(&promoted.active) == new && promoted.staged.is_none());
        let old = promoted.retiring.as_ref().map(|(old, _)| old);
        assert_eq!(old, Some(&first.active.certificate));

        assert!(change(Step::Stage, &promoted, &published, then).is_err());
        assert!(change(Step::Retire, &promoted, &published, then + DAY).is_err());
        let retired = change(Step::Retire, &promoted, &published, then + DAY + LAG).unwrap();
        assert!(retired.active == promoted.active && retired.retiring.is_none());
        assert!(change(Step::Stage, &retired, &published, then + 2 * DAY).is_ok());
    }

    #[test]
    fn the_status_says_what_comes_next() {
        let domain = TrustDomain::parse("example.org").unwrap();
        let now = SystemTime::now();
        let first = Keys::first(Root::make(&domain, now - 3 * DAY).unwrap(), DAY);
        let check = |keys: &Keys, published: &Published, expect: &str| {
            let mut text = Vec::new();
            show(keys, published, now, &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains(expect), "{text}");
        };
        let none = Published::default();
        check(&first, &none, "`adit ca stage` begins");
        let staged = change(Step::Stage, &first, &none, now).unwrap();
        check(&staged, &none, "once adit control has published");
        check(
            &staged,
            &publish(&staged, &none, now),
            "`adit ca promote` from ",
        );
        let mut old = staged.clone();
        old.staged.as_mut().unwrap().1 = now - 2 * DAY;
        let published = publish(&old, &none, now - DAY);
        check(&old, &published, "next      `adit ca promote`\n");
    }
}
