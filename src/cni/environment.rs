//! What the runtime says beside the configuration: the `CNI_*` variables.

use std::path::Path;

use crate::api::plugin::Attachment;
use crate::cni::fault::Fault;

/// The `CNI_*` variables, as they were found; [`config`](crate::config) reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`: `KEY=VALUE` with `;` between.
    pub arguments: String,
}

/// The pod, as kubelet's runtimes name it in `CNI_ARGS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pod<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    /// Empty where the runtime does not tell it.
    pub(crate) uid: &'a str,
}

impl Environment {
    /// The pod; `None` when the container is none: others may use the same network.
    pub(crate) fn pod(&self) -> Option<Pod<'_>> {
        let argument = |key: &str| {
            self.arguments
                .split(';')
                .filter_map(|pair| pair.split_once('='))
                .find_map(|(k, value)| (k == key && !value.is_empty()).then_some(value))
        };
        Some(Pod {
            namespace: argument("K8S_POD_NAMESPACE")?,
            name: argument("K8S_POD_NAME")?,
            uid: argument("K8S_POD_UID").unwrap_or_default(),
        })
    }

    /// What the runtime calls the interface.
    pub(crate) fn attachment(&self) -> Result<Attachment, Fault> {
        Ok(Attachment {
            container: needed("CNI_CONTAINERID", &self.container)?.to_owned(),
            interface: needed("CNI_IFNAME", &self.interface)?.to_owned(),
        })
    }

    /// Where the pod's network namespace is.
    pub(crate) fn netns(&self) -> Result<&Path, Fault> {
        needed("CNI_NETNS", &self.netns).map(Path::new)
    }
}

fn needed<'a>(name: &str, value: &'a str) -> Result<&'a str, Fault> {
    if value.is_empty() {
        return Err(Fault::environment(format!("{name} is not set")));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_read_from_the_arguments() {
        let check = |arguments: &str, expect: Option<[&str; 3]>| {
            let environment = Environment {
                arguments: arguments.to_owned(),
                ..Environment::default()
            };
            let found = environment.pod();
            let found = found.map(|pod| [pod.namespace, pod.name, pod.uid]);
            assert_eq!(found, expect, "{arguments}");
        };
        check(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;\
             K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1",
            Some(["shop", "web-0", "u1"]),
        );
        check(
            "K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop",
            Some(["shop", "web", ""]),
        );
        check("", None);
        check("IgnoreUnknown=1", None);
        check("K8S_POD_NAMESPACE=;K8S_POD_NAME=web", None);
        check("K8S_POD_NAMESPACE;K8S_POD_NAME=web", None);
    }
}
