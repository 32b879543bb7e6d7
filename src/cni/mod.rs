//! The CNI plugin: `adit cni`, or any call with `CNI_COMMAND` set.
//!
//! The container runtime executes it as the last of a chain of plugins, after the pod's interfaces
//! are made and before anything runs in the pod (CNI specification 0.4 to 1.1). It changes nothing
//! itself: it hands the pod's network namespace, as a descriptor, to the daemon of the node, and
//! lets the pod start when the daemon says so. It needs no API server and no configuration but its
//! entry in the chain.
//!
//! Where the daemon is away, pods of enrolled namespaces wait (the runtime is told to try again),
//! and all others start: [`absent`]. Nothing here may hold up the daemon's own namespace or an
//! excluded one, from which all else may depend.

mod absent;
mod ask;
mod environment;
mod fault;
mod spec;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::api::plugin::{Answer, Request, Sandbox};
use crate::cni::ask::Unreachable;
use crate::cni::spec::Configuration;

pub use environment::Environment;
pub use fault::Fault;

/// How long a new pod may wait for the daemon; below what any runtime allows a plugin.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the end of a pod may: it must not be held up.
const FAREWELL: Duration = Duration::from_secs(2);

/// Does what the runtime asks for, with the configuration on `input` and the result on `output`.
pub fn run(
    environment: &Environment,
    mut input: impl Read,
    output: &mut impl Write,
) -> std::io::Result<ExitCode> {
    let mut text = Vec::new();
    let read = input.read_to_end(&mut text);
    let version = spec::version_of(&text);
    let done = read
        .map_err(Fault::input)
        .and_then(|_| act(environment, &text));
    match done {
        Ok(result) => {
            output.write_all(&result)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(fault) => {
            output.write_all(&fault.render(&version))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn act(environment: &Environment, text: &[u8]) -> Result<Vec<u8>, Fault> {
    match environment.command.as_str() {
        "VERSION" => Ok(spec::versions(text)),
        "ADD" => add(environment, &Configuration::read(text)?),
        "CHECK" => check(environment, &Configuration::read(text)?),
        "DEL" => {
            del(environment, &Configuration::read(text)?);
            Ok(Vec::new())
        }
        "GC" => {
            gc(&Configuration::read(text)?);
            Ok(Vec::new())
        }
        "STATUS" => status(&Configuration::read(text)?),
        other => Err(Fault::environment(format!(
            "CNI_COMMAND {other:?} is not one of ADD, CHECK, DEL, GC, STATUS, VERSION"
        ))),
    }
}

/// Lets the pod start, with the result of the plugins before us; or says why it must wait.
fn add(environment: &Environment, configuration: &Configuration<'_>) -> Result<Vec<u8>, Fault> {
    let previous = configuration.previous()?;
    if let Some(sandbox) = sandbox(environment, configuration)? {
        admit(environment, configuration, sandbox, Request::Add)?;
    }
    Ok(previous.to_vec())
}

/// Says whether the pod is still as ADD left it.
fn check(environment: &Environment, configuration: &Configuration<'_>) -> Result<Vec<u8>, Fault> {
    configuration.previous()?;
    if let Some(sandbox) = sandbox(environment, configuration)? {
        admit(environment, configuration, sandbox, Request::Check)?;
    }
    Ok(Vec::new())
}

/// The pod's sandbox; `None` where there is no pod, or one that is never of the mesh.
fn sandbox(
    environment: &Environment,
    configuration: &Configuration<'_>,
) -> Result<Option<Sandbox>, Fault> {
    let attachment = environment.attachment()?;
    let Some(pod) = environment.pod() else {
        return Ok(None);
    };
    if configuration.excludes(pod.namespace) {
        return Ok(None);
    }
    Ok(Some(Sandbox {
        namespace: pod.namespace.to_owned(),
        name: pod.name.to_owned(),
        uid: pod.uid.to_owned(),
        network: configuration.network().to_owned(),
        attachment,
        ips: configuration.addresses()?,
    }))
}

fn admit(
    environment: &Environment,
    configuration: &Configuration<'_>,
    sandbox: Sandbox,
    verb: impl FnOnce(Sandbox) -> Request,
) -> Result<(), Fault> {
    let path = environment.netns()?;
    let netns = File::open(path).map_err(|cause| Fault::netns(path, cause))?;
    let namespace = sandbox.namespace.clone();
    let until = Instant::now() + PATIENCE;
    let run_dir = configuration.run_dir();
    let answer = ask::ask(run_dir, &verb(sandbox), Some(netns.as_fd()), until);
    let away = match answer {
        Ok(Answer::Enrolled | Answer::Bypass { .. } | Answer::Done) => return Ok(()),
        // Whatever is wrong, its own pods may be what mends it.
        _ if configuration.is_own(&namespace) => return Ok(()),
        Ok(Answer::Refused { reason }) => return Err(Fault::refused(&reason)),
        Ok(Answer::Unknown { reason }) => Unreachable::Unsure(reason),
        Err(away) => away,
    };
    absent::decide(absent::read(run_dir), &namespace)
        .map_err(|waits| Fault::unreachable(&away, &waits))
}

/// Tells the daemon that a sandbox goes. Whether or not it hears, the sandbox goes.
fn del(environment: &Environment, configuration: &Configuration<'_>) {
    if let Ok(attachment) = environment.attachment() {
        let request = Request::Del(attachment);
        let until = Instant::now() + FAREWELL;
        let _ = ask::ask(configuration.run_dir(), &request, None, until);
    }
}

/// Tells the daemon which sandboxes are left. One that is away holds none.
fn gc(configuration: &Configuration<'_>) {
    if let Some(left) = configuration.valid_attachments() {
        let request = Request::Gc {
            network: configuration.network().to_owned(),
            left,
        };
        let until = Instant::now() + FAREWELL;
        let _ = ask::ask(configuration.run_dir(), &request, None, until);
    }
}

/// Says whether pods can be added. They can without the daemon, as far as they may: to say no here
/// would make the runtime call the whole network not ready, and kubelet then starts no pod that is
/// not on the node's network, the daemon's own among them. So only a chain that asks for it
/// (`"gate": true`) hears that the daemon is away.
fn status(configuration: &Configuration<'_>) -> Result<Vec<u8>, Fault> {
    if !configuration.gates() {
        return Ok(Vec::new());
    }
    let until = Instant::now() + FAREWELL;
    match ask::ask(configuration.run_dir(), &Request::Status, None, until) {
        Ok(Answer::Refused { reason } | Answer::Unknown { reason }) => {
            Err(Fault::unavailable(reason))
        }
        Ok(_) => Ok(Vec::new()),
        Err(away) => Err(Fault::unavailable(away.to_string())),
    }
}
