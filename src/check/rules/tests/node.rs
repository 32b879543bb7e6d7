//! The machine that the check runs on.

use super::*;

fn this_node() -> ThisNode {
    let status = api::Status {
        version: "0.1.0".to_owned(),
        ready: true,
        ..api::Status::default()
    };
    let certificate = api::Certificate {
        identity: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
        state: "valid".to_owned(),
        not_after: (now() + DAY).duration_since(UNIX_EPOCH).unwrap().as_secs(),
        ..api::Certificate::default()
    };
    ThisNode {
        kernel: "6.1.0".to_owned(),
        capture: Ok(()),
        sock_diag: Ok(()),
        capabilities: Ok(u64::MAX),
        kubelet: Some("its control group"),
        daemon: Ok((status, vec![certificate])),
    }
}

#[test]
fn a_node_that_cannot_capture_is_told() {
    let on = |change: &dyn Fn(&mut ThisNode)| {
        with(|facts| {
            let mut node = this_node();
            change(&mut node);
            facts.node = Some(node);
        })
    };
    let all = crate::check::rules::check(&on(&|_| {}));
    assert!(all.iter().all(|one| one.state == State::Pass), "{all:#?}");
    let capture = on(&|node| node.capture = Err("there is no nft program".to_owned()));
    changed(
        &capture,
        "a connection can be",
        State::Fail,
        &["Linux 6.1.0", "no nft"],
    );
    let diag = on(&|node| node.sock_diag = Err("ENOENT".to_owned()));
    changed(&diag, "sockets can be listed", State::Fail, &["ENOENT"]);
    let weak = on(&|node| node.capabilities = Ok(1 << 12));
    changed(
        &weak,
        "this process has",
        State::Fail,
        &["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"],
    );
    let blind = on(&|node| node.kubelet = None);
    changed(&blind, "kubelet is seen", State::Warn, &["no process"]);
    let away = on(&|node| node.daemon = Err("cannot reach a node".to_owned()));
    changed(&away, "the daemon serves", State::Fail, &["cannot reach"]);
    let unready = on(&|node| {
        let (status, _) = node.daemon.as_mut().unwrap();
        status.ready = false;
        status.waiting_for = vec!["2 pods".to_owned()];
    });
    changed(
        &unready,
        "the daemon serves",
        State::Fail,
        &["not ready", "2 pods"],
    );
    let troubled = on(&|node| {
        let (status, _) = node.daemon.as_mut().unwrap();
        status.failures = vec!["pod shop/x: no namespace".to_owned()];
    });
    changed(&troubled, "the daemon serves", State::Warn, &["shop/x"]);
    let old = on(&|node| "0.0.9".clone_into(&mut node.daemon.as_mut().unwrap().0.version));
    changed(&old, "the daemon is of", State::Warn, &["0.0.9"]);
    let over = on(&|node| node.daemon.as_mut().unwrap().1[0].not_after = 1);
    changed(&over, "the certificates of this", State::Fail, &["sa/web"]);
    let failing = on(&|node| {
        let certificate = &mut node.daemon.as_mut().unwrap().1[0];
        certificate.failures = 3;
        certificate.error = Some("refused".to_owned());
    });
    changed(
        &failing,
        "the certificates of this",
        State::Warn,
        &["refused", "1440 min"],
    );
    let pre = with(|facts| {
        facts.pre = true;
        facts.cluster = Asked::InVain;
        facts.node = Some(this_node());
    });
    assert!(
        crate::check::rules::check(&pre)
            .iter()
            .all(|one| one.name != "the daemon serves every pod of the mesh here")
    );
}
