//! Lists as columns.
//!
//! Rows are sorted by namespace and name, cells hold no blanks but where a person writes prose,
//! and the last column takes what may be long: so the tables suit `grep` and `awk` too.

use comfy_table::Table;
use comfy_table::presets::NOTHING;

use crate::api::{Certificate, Connection, Pod, Policy, Service, Workload};

/// Every pod known.
pub(crate) fn workloads(mut all: Vec<Workload>) -> String {
    all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let header = ["NAMESPACE", "NAME", "ADDRESS", "NODE", "MESH", "IDENTITY"];
    let rows = all.into_iter().map(|workload| {
        [
            workload.namespace,
            workload.name,
            list(workload.ips),
            workload.node,
            workload.bypass.unwrap_or_else(|| "enrolled".to_owned()),
            workload.identity,
        ]
    });
    columns(header, rows)
}

/// Every service known.
pub(crate) fn services(mut all: Vec<Service>) -> String {
    all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let header = ["NAMESPACE", "NAME", "VIP", "PORTS", "READY", "ENDPOINTS"];
    let rows = all.into_iter().map(|service| {
        let ready = service.endpoints.iter().filter(|end| end.ready).count();
        let port = |port: &crate::api::ServicePort| format!("{}>{}", port.port, port.target);
        let endpoint = |end: &crate::api::Endpoint| {
            let to = end.workload.as_ref().unwrap_or(&end.ip);
            format!("{to}{}", if end.ready { "" } else { "(not-ready)" })
        };
        [
            service.namespace,
            service.name,
            list(service.vips),
            list(service.ports.iter().map(port)),
            format!("{ready}/{}", service.endpoints.len()),
            list(service.endpoints.iter().map(endpoint)),
        ]
    });
    columns(header, rows)
}

/// Every policy.
pub(crate) fn policies(mut all: Vec<Policy>) -> String {
    all.sort_by(|a, b| (&a.namespace, &a.name, &a.kind).cmp(&(&b.namespace, &b.name, &b.kind)));
    let header = [
        "NAMESPACE",
        "NAME",
        "KIND",
        "ACTION",
        "BINDS",
        "RULES",
        "REMARKS",
    ];
    let rows = all.into_iter().map(|policy| {
        let binds = if policy.selector.is_empty() {
            policy.scope.as_str().to_owned()
        } else {
            list(policy.selector.iter().map(|(k, v)| format!("{k}={v}")))
        };
        let dry_run = policy.dry_run.then(|| "dry run, not enforced".to_owned());
        let refuses = policy
            .not_understood
            .map(|why| format!("refuses, not understood: {why}"));
        // What was not understood stands among the notices as well.
        let notices = policy.notices.into_iter();
        let notices = notices.filter(|notice| notice.kind != "not_understood");
        let remarks = dry_run.into_iter().chain(refuses);
        let remarks: Vec<_> = remarks.chain(notices.map(|n| n.message)).collect();
        [
            policy.namespace,
            policy.name,
            policy.kind,
            policy.action,
            binds,
            policy.rules.to_string(),
            remarks.join("; "),
        ]
    });
    columns(header, rows)
}

/// This node's pods of the mesh.
pub(crate) fn pods(mut all: Vec<Pod>) -> String {
    all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let header = [
        "NAMESPACE",
        "NAME",
        "ADDRESS",
        "STATE",
        "KEPT",
        "IDENTITY",
        "WHY",
    ];
    let rows = all.into_iter().map(|pod| {
        let why = [pod.reason, pod.error];
        let why: Vec<_> = why.into_iter().filter(|text| !text.is_empty()).collect();
        [
            pod.namespace,
            pod.name,
            list(pod.ips),
            pod.state.as_str().to_owned(),
            pod.connections_kept.to_string(),
            pod.identity,
            why.join(": "),
        ]
    });
    columns(header, rows)
}

/// This node's certificates, at `now` seconds since 1970.
pub(crate) fn certificates(mut all: Vec<Certificate>, now: u64) -> String {
    all.sort_by(|a, b| a.identity.cmp(&b.identity));
    let header = ["IDENTITY", "STATE", "SERIAL", "ENDS", "RENEWAL", "ERROR"];
    let rows = all.into_iter().map(|certificate| {
        let there = !certificate.serial.is_empty();
        [
            certificate.identity,
            certificate.state,
            certificate.serial,
            if there {
                moment(certificate.not_after, now)
            } else {
                String::new()
            },
            moment(certificate.renew_at, now),
            certificate.error.unwrap_or_default(),
        ]
    });
    columns(header, rows)
}

/// The connections alive, oldest first.
pub(crate) fn connections(mut all: Vec<Connection>) -> String {
    all.sort_by(|a, b| {
        b.age_seconds
            .total_cmp(&a.age_seconds)
            .then(a.id.cmp(&b.id))
    });
    let header = [
        "ID",
        "DIRECTION",
        "PATH",
        "SOURCE",
        "DESTINATION",
        "SENT",
        "RECEIVED",
        "AGE",
        "POLICY",
    ];
    let end = |workload: String, addr: &str| {
        if workload.is_empty() {
            addr.to_owned()
        } else {
            format!("{workload}({addr})")
        }
    };
    let rows = all.into_iter().map(|connection| {
        [
            connection.id.to_string(),
            connection.direction,
            connection.path,
            end(connection.source_workload, &connection.source),
            end(connection.destination_workload, &connection.destination),
            bytes(connection.bytes_sent),
            bytes(connection.bytes_recv),
            span(connection.age_seconds),
            connection.policy.unwrap_or_default(),
        ]
    });
    columns(header, rows)
}

/// Lays rows out in columns; an empty cell is a dash.
pub(crate) fn columns<const N: usize>(
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    for row in rows {
        let dash = |cell: String| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell
            }
        };
        table.add_row(row.map(dash));
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if at + 1 == N { 0 } else { 2 }));
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(",")
}

/// A moment seen from now: `in 11h59m`, `3m12s ago`.
fn moment(at: u64, now: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a span for eyes")]
    let seconds = at.abs_diff(now) as f64;
    if at >= now {
        format!("in {}", span(seconds))
    } else {
        format!("{} ago", span(seconds))
    }
}

/// A span in its two greatest units: `1d3h`, `12m5s`, `0s`.
pub(crate) fn span(seconds: f64) -> String {
    // Casts from float saturate: what is negative or no number is 0s.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturating is meant"
    )]
    let seconds = seconds as u64;
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, unit) in units {
        let count = rest / size;
        rest %= size;
        if count > 0 {
            parts.push(format!("{count}{unit}"));
        } else if !parts.is_empty() {
            break;
        }
    }
    parts.truncate(2);
    if parts.is_empty() {
        "0s".to_owned()
    } else {
        parts.concat()
    }
}

/// A number of bytes in its greatest binary unit.
fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[expect(clippy::cast_precision_loss, reason = "a size for eyes")]
    let mut size = count as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count}B")
    } else {
        format!("{size:.1}{}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Notice, PodState};

    #[test]
    fn spans_and_sizes_are_short() {
        let check = |seconds: f64, expect: &str| assert_eq!(span(seconds), expect);
        check(0.4, "0s");
        check(59.9, "59s");
        check(3_600.0, "1h");
        check(3_665.0, "1h1m");
        check(90_061.0, "1d1h");
        check(86_405.0, "1d");
        check(-3.0, "0s");
        check(f64::NAN, "0s");
        let check = |count: u64, expect: &str| assert_eq!(bytes(count), expect);
        check(0, "0B");
        check(1023, "1023B");
        check(1536, "1.5KiB");
        check(u64::MAX, "16777216.0TiB");
        assert_eq!(moment(100, 40), "in 1m");
        assert_eq!(moment(40, 100), "1m ago");
    }

    #[test]
    fn rows_are_sorted_and_one_line_each() {
        let pod = |name: &str, state, reason: &str| Pod {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            state,
            reason: reason.to_owned(),
            error: reason.to_owned(),
            ..Pod::default()
        };
        let text = pods(vec![
            pod("web", PodState::Failed, "port_taken"),
            pod("db", PodState::Enrolled, ""),
        ]);
        assert_eq!(
            text,
            "NAMESPACE  NAME  ADDRESS           STATE     KEPT  IDENTITY  WHY\n\
             shop       db    10.0.0.1,fd00::1  enrolled  0     -         -\n\
             shop       web   10.0.0.1,fd00::1  failed    0     -         port_taken: port_taken\n"
        );
    }

    #[test]
    fn a_policy_that_was_not_understood_says_so_once() {
        let text = policies(vec![Policy {
            namespace: "shop".to_owned(),
            name: "odd".to_owned(),
            kind: "AuthorizationPolicy".to_owned(),
            action: "REFUSE".to_owned(),
            not_understood: Some("action MAYBE".to_owned()),
            notices: vec![Notice {
                kind: "not_understood".to_owned(),
                message: "action MAYBE".to_owned(),
            }],
            ..Policy::default()
        }]);
        assert_eq!(text.matches("MAYBE").count(), 1, "{text}");
        assert!(
            text.contains("refuses, not understood: action MAYBE"),
            "{text}"
        );
    }

    #[test]
    fn an_empty_list_is_its_header() {
        assert_eq!(
            workloads(Vec::new()),
            "NAMESPACE  NAME  ADDRESS  NODE  MESH  IDENTITY\n"
        );
    }
}
