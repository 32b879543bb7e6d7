//! Whose a process is, by its control groups: the text of `/proc/PID/cgroup` (cgroups(7)).
//!
//! Kubelet makes a group per pod, named after the pod's UID, and the runtime the containers' groups
//! below it. How the name looks depends on driver and runtime:
//!
//! | layout | path |
//! |---|---|
//! | cgroupfs | `/kubepods/burstable/pod<uid>/<container>` |
//! | systemd | `/kubepods.slice/…/kubepods-burstable-pod<uid>.slice/cri-containerd-<container>.scope` |
//! | systemd, by the runtime's own service | `/system.slice/containerd.service/kubepods-pod<uid>.slice:cri-containerd:<container>` |
//! | a node in a container | `/docker/<node>/kubelet/kubepods/…`, `/kubelet.slice/kubelet-kubepods-pod<uid>.slice/…` |
//! | seen from within a control group namespace | `/../../kubepods-pod<uid>.slice/…`, `/../../pod<uid>/…` |
//!
//! What stands above all others counts: whoever may make groups in a container makes them below
//! that.

/// The UID of a pod, written in any way: dashes, underscores or nothing between its groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Uid(u128);

impl Uid {
    /// Reads a UID of 32 hexadecimal digits: a UUID, or the hash by which kubelet names a pod that
    /// it was given as a file. `None` for any other text.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut digits = 0_u32;
        let mut number = 0_u128;
        for (at, sign) in text.char_indices() {
            match sign.to_digit(16) {
                Some(digit) => {
                    digits += 1;
                    number = number << 4 | u128::from(digit);
                }
                None if matches!(sign, '-' | '_') && matches!(at, 8 | 13 | 18 | 23) => {}
                None => return None,
            }
        }
        let separated = text.len() == 36;
        ((separated || text.len() == 32) && digits == 32).then_some(Self(number))
    }
}

/// The pod whose process has this `/proc/PID/cgroup`; `None` for a process of none, or if the
/// hierarchies of version 1 disagree.
pub(super) fn pod_of(cgroup: &str) -> Option<Uid> {
    let mut found = None;
    for uid in cgroup.lines().filter_map(pod_in_line) {
        match found {
            None => found = Some(uid),
            Some(before) if before == uid => {}
            Some(_) => return None,
        }
    }
    found
}

/// The path of the process in the hierarchy of version 2, if there is that hierarchy.
pub(in crate::capture) fn unified(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Whether a process is of any pod, or of a container of which one cannot tell.
pub(in crate::capture) fn is_contained(cgroup: &str) -> bool {
    const RUNTIMES: [&str; 6] = [
        "kubepods",
        "docker",
        "crio-",
        "cri-containerd",
        "libpod",
        "lxc",
    ];
    cgroup.lines().any(|line| pod_in_line(line).is_some())
        || RUNTIMES.iter().any(|runtime| cgroup.contains(runtime))
}

/// A line is `hierarchy:controllers:path`.
fn pod_in_line(line: &str) -> Option<Uid> {
    let path = line.splitn(3, ':').nth(2)?;
    path.split(['/', ':']).find_map(pod_in_name)
}

fn pod_in_name(name: &str) -> Option<Uid> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None => name.rsplit_once("-pod")?.1,
    };
    Uid::parse(uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: &str = "2c48913c-b29f-11e7-9350-020968147796";

    fn check(cgroup: &str, expect: Option<&str>) {
        let expect = expect.map(|uid| Uid::parse(uid).unwrap());
        assert_eq!(pod_of(cgroup), expect, "{cgroup}");
    }

    #[test]
    fn every_layout_in_the_field_is_read() {
        const C: &str = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961";
        const U_: &str = "2c48913c_b29f_11e7_9350_020968147796";
        for path in [
            // cgroupfs, of each class of service.
            format!("/kubepods/burstable/pod{UID}/{C}"),
            format!("/kubepods/besteffort/pod{UID}/{C}"),
            format!("/kubepods/pod{UID}/{C}"),
            // systemd, containerd, CRI-O, Docker.
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{U_}.slice/cri-containerd-{C}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{U_}.slice/cri-containerd-{C}.scope"),
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{U_}.slice/crio-{C}.scope"
            ),
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{U_}.slice/crio-{C}.scope/container"
            ),
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{U_}.slice/crio-conmon-{C}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{U_}.slice/docker-{C}.scope"),
            // The runtime's own notation where it does not speak to systemd as one should.
            format!(
                "/system.slice/containerd.service/kubepods-burstable-pod{U_}.slice:cri-containerd:{C}"
            ),
            format!("/kubepods-burstable-pod{U_}.slice:cri-containerd:{C}"),
            // k3s, microk8s, kind, kind on cgroup v2, a node in Docker.
            format!("/k8s.io/kubepods/burstable/pod{UID}/{C}"),
            format!("/kubelet/kubepods/burstable/pod{UID}/{C}"),
            format!("/docker/{C}/kubelet/kubepods/besteffort/pod{UID}/{C}"),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{U_}.slice/cri-containerd-{C}.scope"
            ),
            // A reader in a control group namespace of its own.
            format!("/../../kubepods-burstable-pod{U_}.slice/cri-containerd-{C}.scope"),
            format!(
                "/../../../kubepods-besteffort.slice/kubepods-besteffort-pod{U_}.slice/crio-{C}.scope"
            ),
            format!("/../../pod{UID}/{C}"),
            format!("/../pod{UID}/{C}"),
            // A sandbox's own group, and groups made inside a container.
            format!("/kubepods/burstable/pod{UID}"),
            format!("/kubepods/burstable/pod{UID}/{C}/init.scope/a:b"),
            // No separators.
            format!("/kubepods/pod{}/{C}", UID.replace('-', "")),
        ] {
            check(&format!("0::{path}\n"), Some(UID));
            check(
                &format!("11:memory:{path}\n1:name=systemd:{path}\n0::/\n"),
                Some(UID),
            );
        }
    }

    #[test]
    fn a_pod_from_a_file_is_named_by_a_hash() {
        let hash = "0f9ab2e4c1d9bd1cb6e0d2dd4a1c8f37";
        check(
            &format!("0::/kubepods.slice/kubepods-pod{hash}.slice/crio-1.scope"),
            Some(hash),
        );
    }

    #[test]
    fn what_is_no_pod_is_none() {
        for cgroup in [
            "",
            "0::/",
            "0::/init.scope\n",
            "0::/system.slice/kubelet.service\n",
            "0::/system.slice/containerd.service\n",
            "0::/kubepods.slice/kubepods-burstable.slice\n",
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/podman-1.scope\n",
            "0::/../init.scope",
            "12:pids:/docker/2c48913cb29f11e79350020968147796",
            "0::/kubepods/burstable/pod2c48913c-b29f-11e7-9350-02096814779/x",
            "0::/kubepods/burstable/pod2c48913c-b29f-11e7-9350-0209681477960/x",
            "0::/kubepods/burstable/pod2c48913cb-29f-11e7-9350-020968147796/x",
            "nonsense",
        ] {
            check(cgroup, None);
        }
    }

    #[test]
    fn hierarchies_that_disagree_are_not_believed() {
        let other = "aaaaaaaa-b29f-11e7-9350-020968147796";
        check(
            &format!("2:cpu:/kubepods/pod{UID}/c\n1:pids:/kubepods/pod{other}/c"),
            None,
        );
    }

    #[test]
    fn a_container_cannot_pass_for_another_pod_by_groups_of_its_own() {
        let other = "aaaaaaaa-b29f-11e7-9350-020968147796";
        check(
            &format!("0::/kubepods/pod{UID}/c/kubepods/pod{other}/c"),
            Some(UID),
        );
    }

    #[test]
    fn kubelet_is_not_contained_and_its_pods_are() {
        for (cgroup, contained) in [
            ("0::/system.slice/kubelet.service", false),
            ("0::/../../../system.slice/kubelet.service", false),
            ("0::/system.slice/k3s.service", false),
            ("0::/kubepods.slice/kubepods-burstable.slice/x.scope", true),
            ("12:pids:/docker/2c48913cb29f11e79350020968147796", true),
        ] {
            assert_eq!(is_contained(cgroup), contained, "{cgroup}");
        }
        let pod = format!("0::/../../pod{UID}/c");
        assert!(is_contained(&pod));
        assert_eq!(unified(&pod), Some(&*format!("/../../pod{UID}/c")));
        assert_eq!(unified("1:cpu:/a\n"), None);
    }

    proptest! {
        #[test]
        fn no_text_is_too_much(text in "\\PC{0,80}") {
            let _ = pod_of(&text);
            let _ = pod_of(&format!("0::/pod{text}"));
        }
    }
}
