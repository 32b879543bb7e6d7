//! The Kubernetes objects that a lab makes for its pods and services.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::cluster::{Cluster, Endpoint, Place, Slice};
use super::lab::Pod;

/// The Kubernetes object of a pod that runs and is ready.
pub(crate) fn pod(pod: &Pod) -> Value {
    let (name, spec) = (pod.name(), pod.spec());
    let ips: Vec<Value> = pod
        .ips()
        .iter()
        .map(|ip| json!({ "ip": ip.to_string() }))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": spec.namespace,
            "uid": format!("uid-{}-{name}", spec.namespace),
            "labels": spec.labels,
            "annotations": { "adit.mesh/netns": pod.netns().path() },
        },
        "spec": {
            "nodeName": format!("node{}", pod.node()),
            "serviceAccountName": spec.service_account,
            "containers": [{ "name": "app", "image": "app" }],
        },
        "status": {
            "phase": "Running",
            "podIP": pod.ip().to_string(),
            "podIPs": ips,
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// A service that is being described; [`add`](ServiceSpec::add) makes its objects.
#[derive(Debug)]
pub(crate) struct ServiceSpec<'a> {
    cluster: &'a mut Cluster,
    namespace: String,
    name: String,
    v4: IpAddr,
    v6: IpAddr,
    ports: Vec<Value>,
    slice: Slice,
    extra: Value,
}

impl<'a> ServiceSpec<'a> {
    /// Begins the `number`th service of a lab, in the namespace `mesh`.
    pub(crate) fn new(cluster: &'a mut Cluster, number: u8, name: &str) -> Self {
        Self {
            cluster,
            namespace: "mesh".to_owned(),
            name: name.to_owned(),
            v4: IpAddr::from([10, 96, 0, number]),
            v6: IpAddr::from([0xfd96, 0, 0, 0, 0, 0, 0, u16::from(number)]),
            ports: Vec::new(),
            slice: Slice::default(),
            extra: json!({}),
        }
    }

    /// Adds a port that leads to a number.
    pub(crate) fn port(mut self, name: &'static str, port: u16, target: u16) -> Self {
        self.ports
            .push(json!({ "name": name, "port": port, "targetPort": target, "protocol": "TCP" }));
        self.slice.ports.push((name, target));
        self
    }

    /// Adds a port that leads to a name, which the endpoints give this number.
    pub(crate) fn named_port(
        mut self,
        name: &'static str,
        port: u16,
        target: &str,
        number: u16,
    ) -> Self {
        self.ports
            .push(json!({ "name": name, "port": port, "targetPort": target, "protocol": "TCP" }));
        self.slice.ports.push((name, number));
        self
    }

    /// Adds pods that are ready.
    pub(crate) fn to(mut self, pods: &[&Pod]) -> Self {
        for pod in pods {
            self = self.endpoint(pod, true);
        }
        self
    }

    /// Adds a pod, ready or not.
    pub(crate) fn endpoint(mut self, pod: &Pod, ready: bool) -> Self {
        for ip in pod.ips() {
            let place = Place {
                pod: pod.name().to_owned(),
                node: format!("node{}", pod.node()),
                zone: format!("zone{}", pod.node()),
            };
            let pod = Some(place);
            self.slice.endpoints.push(Endpoint { ip, pod, ready });
        }
        self
    }

    /// Adds an address that is no pod's.
    pub(crate) fn address(mut self, ip: IpAddr) -> Self {
        let (pod, ready) = (None, true);
        self.slice.endpoints.push(Endpoint { ip, pod, ready });
        self
    }

    /// Adds a field to its `spec`.
    pub(crate) fn spec(mut self, field: &str, value: Value) -> Self {
        self.extra[field] = value;
        self
    }

    /// In another Kubernetes namespace.
    pub(crate) fn namespace(mut self, name: &str) -> Self {
        name.clone_into(&mut self.namespace);
        self
    }

    /// Adds its objects to the cluster and gives its addresses, IPv4 and IPv6.
    pub(crate) fn add(self) -> (IpAddr, IpAddr) {
        let mut spec = json!({
            "type": "ClusterIP",
            "clusterIP": self.v4.to_string(),
            "clusterIPs": [self.v4.to_string(), self.v6.to_string()],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": self.ports,
        });
        for (field, value) in self.extra.as_object().expect("it is made as one") {
            spec[field] = value.clone();
        }
        self.cluster.put(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": self.namespace },
            "spec": spec,
        }));
        for slice in self.slice.objects(&self.namespace, &self.name) {
            self.cluster.put(slice);
        }
        (self.v4, self.v6)
    }
}
