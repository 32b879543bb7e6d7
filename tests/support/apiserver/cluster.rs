//! A cluster of any size, for load: pods as a real cluster shows them, some 4 kB each.

use serde_json::{Value, json};

/// How large.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Synthetic {
    pub(crate) pods: u32,
    pub(crate) services: u32,
    pub(crate) nodes: u32,
    pub(crate) namespaces: u32,
}

impl Synthetic {
    /// Everything in it.
    pub(crate) fn objects(self) -> impl Iterator<Item = Value> {
        let namespaces = (0..self.namespaces).map(|i| {
            let label = if i % 2 == 0 { "ambient" } else { "none" };
            json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": { "name": format!("team-{i}"), "labels": { "adit.mesh/mode": label } },
            })
        });
        let nodes = (0..self.nodes).map(node);
        let services = (0..self.services).flat_map(move |i| [self.service(i), self.slice(i)]);
        let pods = (0..self.pods).map(move |i| self.pod(i));
        namespaces.chain(nodes).chain(services).chain(pods)
    }

    /// The `i`th pod.
    pub(crate) fn pod(self, i: u32) -> Value {
        let app = i / (self.pods / self.services).max(1);
        let hash = format!("{:08x}", app.wrapping_mul(2_654_435_761));
        let ip = address(10, 64, i);
        let name = format!("app-{app}");
        let started = json!({ "running": { "startedAt": "2026-01-05T10:01:24Z" } });
        let condition = |kind: &str| {
            json!({ "type": kind, "status": "True", "lastProbeTime": null,
                    "lastTransitionTime": "2026-01-05T10:01:24Z" })
        };
        let conditions = [
            "PodReadyToStartContainers",
            "Initialized",
            "Ready",
            "ContainersReady",
            "PodScheduled",
        ];
        let conditions = conditions.map(condition);
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": format!("{name}-{hash}-x{i}"),
                "generateName": format!("{name}-{hash}-"),
                "namespace": format!("team-{}", app % self.namespaces),
                "uid": format!("{hash}-1d2e-4f3a-8b4c-{i:012x}"),
                "creationTimestamp": "2026-01-05T10:01:22Z",
                "labels": {
                    "app.kubernetes.io/name": name, "app.kubernetes.io/version": "1.4.2",
                    "pod-template-hash": hash,
                },
                "annotations": { "kubectl.kubernetes.io/restartedAt": "2026-01-05T10:01:00Z" },
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                    "name": format!("{name}-{hash}"), "blockOwnerDeletion": true,
                    "uid": format!("{hash}-aaaa-4f3a-8b4c-000000000000"),
                }],
                "managedFields": managed_fields(),
            },
            "spec": {
                "nodeName": format!("node-{}", i % self.nodes),
                "serviceAccountName": format!("sa-{}", app % 20),
                "serviceAccount": format!("sa-{}", app % 20),
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "priority": 0,
                "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30,
                "securityContext": {}, "enableServiceLinks": true,
                "containers": [{
                    "name": "app", "image": format!("registry.example/team/{name}:1.4.2"),
                    "imagePullPolicy": "IfNotPresent",
                    "ports": [{ "containerPort": 8080, "name": "http", "protocol": "TCP" }],
                    "env": [{ "name": "LEVEL", "value": "info" }, { "name": "REGION", "value": "eu" }],
                    "resources": { "limits": { "memory": "256Mi" },
                                   "requests": { "cpu": "100m", "memory": "256Mi" } },
                    "readinessProbe": { "httpGet": { "path": "/healthz", "port": "http", "scheme": "HTTP" },
                                        "periodSeconds": 10, "timeoutSeconds": 1 },
                    "terminationMessagePath": "/dev/termination-log",
                    "volumeMounts": [{ "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                                       "name": "kube-api-access", "readOnly": true }],
                }],
                "tolerations": [
                    { "effect": "NoExecute", "key": "node.kubernetes.io/not-ready",
                      "operator": "Exists", "tolerationSeconds": 300 },
                    { "effect": "NoExecute", "key": "node.kubernetes.io/unreachable",
                      "operator": "Exists", "tolerationSeconds": 300 },
                ],
                "volumes": [{ "name": "kube-api-access", "projected": { "defaultMode": 420, "sources": [
                    { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
                    { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                ] } }],
            },
            "status": {
                "phase": "Running", "qosClass": "Burstable", "hostIP": address(10, 0, i % self.nodes),
                "podIP": ip, "podIPs": [{ "ip": ip }], "startTime": "2026-01-05T10:01:22Z",
                "conditions": conditions,
                "containerStatuses": [{
                    "name": "app", "ready": true, "restartCount": 0, "started": true, "state": started,
                    "image": format!("registry.example/team/{name}:1.4.2"), "lastState": {},
                    "imageID": format!("registry.example/team/{name}@sha256:{hash:0>64}"),
                    "containerID": format!("containerd://{hash:0>64}"),
                }],
            },
        })
    }

    fn service(self, i: u32) -> Value {
        let ip = address(172, 16, i);
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": format!("app-{i}"), "namespace": format!("team-{}", i % self.namespaces) },
            "spec": {
                "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
                "internalTrafficPolicy": "Cluster", "selector": { "app.kubernetes.io/name": format!("app-{i}") },
                "ports": [{ "name": "http", "port": 80, "protocol": "TCP", "targetPort": "http" }],
            },
            "status": { "loadBalancer": {} },
        })
    }

    fn slice(self, i: u32) -> Value {
        let each = self.pods / self.services;
        let endpoints: Vec<Value> = (i * each..(i + 1) * each)
            .map(|pod| {
                json!({
                    "addresses": [address(10, 64, pod)],
                    "conditions": { "ready": true, "serving": true, "terminating": false },
                    "nodeName": format!("node-{}", pod % self.nodes),
                    "targetRef": { "kind": "Pod", "name": format!("app-{i}-x{pod}") },
                    "zone": format!("zone-{}", pod % self.nodes % 3),
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("app-{i}-abcde"), "namespace": format!("team-{}", i % self.namespaces),
                "labels": { "kubernetes.io/service-name": format!("app-{i}") },
            },
            "endpoints": endpoints,
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        })
    }
}

fn node(i: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": format!("node-{i}"),
            "labels": { "topology.kubernetes.io/zone": format!("zone-{}", i % 3),
                        "topology.kubernetes.io/region": "eu" },
        },
        "spec": {},
        "status": { "addresses": [{ "type": "InternalIP", "address": address(10, 0, i) }] },
    })
}

fn address(first: u8, second: u8, i: u32) -> String {
    let base = u32::from_be_bytes([first, second, 0, 0]);
    std::net::Ipv4Addr::from(base + i).to_string()
}

/// What server-side apply leaves on every pod: about a kilobyte that nobody here reads.
fn managed_fields() -> Value {
    let fields = |name: &str| {
        json!({ format!("f:{name}"): { ".": {}, "f:name": {}, "f:image": {}, "f:ports": {
            ".": {}, "k:{\"containerPort\":8080,\"protocol\":\"TCP\"}": { ".": {}, "f:containerPort": {} } } } })
    };
    let one = |manager: &str, part: &str| {
        json!({ "manager": manager, "operation": "Update", "apiVersion": "v1",
                "time": "2026-01-05T10:01:22Z", "fieldsType": "FieldsV1",
                "fieldsV1": { "f:metadata": fields("labels"), format!("f:{part}"): fields("containers") } })
    };
    json!([
        one("kube-controller-manager", "spec"),
        one("kubelet", "status")
    ])
}
