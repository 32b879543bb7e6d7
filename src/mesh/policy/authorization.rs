//! AuthorizationPolicy (`security.istio.io/v1`), as it was written.
//!
//! The values of its rules are in `rules`; here are the policy itself and the reading of both.

use serde_json::Value;

use crate::mesh::policy::json::{Fields, selector};
use crate::mesh::policy::value::block;
use crate::mesh::policy::{
    Condition, Notice, NoticeKind, Operation, Pattern, PolicyName, Rule, ServiceAccount, Source,
    Values, dry_run,
};
use crate::mesh::{Identity, Selector};

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Its namespace and name.
    pub name: PolicyName,
    /// Which workloads it binds; `None` for its whole namespace, or the whole mesh when that is
    /// the root namespace. `None` also where the selector could not be read.
    pub selector: Option<Selector>,
    /// Whether it is to be counted and logged, and never enforced.
    pub dry_run: bool,
    /// What it demands.
    pub body: Body,
    /// What its author should know.
    pub notices: Vec<Notice>,
}

/// What an AuthorizationPolicy demands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Flows that match one of the rules are what the action is about.
    Rules {
        /// Allow or deny.
        action: Action,
        /// Alternatives; with none, nothing matches.
        rules: Vec<Rule>,
    },
    /// It could not be understood: every flow is refused.
    Refuse {
        /// The field that was not understood, and why.
        why: String,
    },
}

/// What a policy does with the flows that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Allows them, and refuses what no ALLOW policy of the workload matches.
    Allow,
    /// Refuses them.
    Deny,
}

impl Action {
    /// `ALLOW` or `DENY`, as policies say it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
        }
    }
}

impl AuthorizationPolicy {
    /// Reads a policy from the parts of its object. Never fails; see the
    /// [module](crate::mesh::policy) for what stands in for parts that cannot be understood.
    #[must_use]
    pub fn read<K: AsRef<str>, V: AsRef<str>>(
        name: &str,
        namespace: &str,
        annotations: impl IntoIterator<Item = (K, V)>,
        spec: &Value,
    ) -> Self {
        let mut notices = Vec::new();
        let dry_run = dry_run(annotations).unwrap_or_else(|value| {
            notices.push(Notice {
                kind: NoticeKind::OtherEffect,
                text: format!("annotation istio.io/dry-run is {value:?}, no boolean: enforced"),
            });
            false
        });
        let read = selector(spec).and_then(|bound| Ok((bound, binding(spec)?)));
        let (selector, body) = match read {
            Ok((selector, ())) => (selector, body(spec, namespace)),
            Err(why) => (None, Err(why)),
        };
        let body = body.unwrap_or_else(|why| Body::Refuse { why });
        notices.extend(remarks(&body));
        Self {
            name: PolicyName::new(namespace, name),
            selector,
            dry_run,
            body,
            notices,
        }
    }
}

/// Fails where the policy binds by reference. Istio leaves such a policy to waypoints; without
/// one nothing would enforce it, and which workloads stand behind the reference is not known here.
fn binding(spec: &Value) -> Result<(), String> {
    for field in ["targetRef", "targetRefs"] {
        match spec.get(field) {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) if items.is_empty() => {}
            Some(_) => return Err(format!("spec.{field} needs a waypoint, and there is none")),
        }
    }
    Ok(())
}

fn body(spec: &Value, namespace: &str) -> Result<Body, String> {
    const FIELDS: [&str; 5] = ["action", "rules", "selector", "targetRef", "targetRefs"];
    let action = match spec.get("action") {
        None | Some(Value::Null) => Action::Allow,
        Some(Value::String(text)) if text == "ALLOW" => Action::Allow,
        Some(Value::String(text)) if text == "DENY" => Action::Deny,
        Some(other) => {
            return Err(format!(
                "spec.action is {other}: only ALLOW and DENY are served"
            ));
        }
    };
    let spec = Fields::open(spec, "spec".to_owned(), &FIELDS)?;
    let rules = spec.list("rules")?.iter().enumerate();
    let rules = rules.map(|(at, value)| rule(value, &format!("spec.rules[{at}]"), namespace));
    Ok(Body::Rules {
        action,
        rules: rules.collect::<Result<_, _>>()?,
    })
}

fn rule(value: &Value, path: &str, namespace: &str) -> Result<Rule, String> {
    if value.is_null() {
        return Err(format!("{path} is null"));
    }
    let fields = Fields::open(value, path.to_owned(), &["from", "to", "when"])?;
    let from = fields.list("from")?.iter().enumerate();
    let from = from.map(|(at, v)| source(v, &format!("{path}.from[{at}]"), namespace));
    let to = fields.list("to")?.iter().enumerate();
    let to = to.map(|(at, v)| operation(v, &format!("{path}.to[{at}]")));
    let when = fields.list("when")?.iter().enumerate();
    let when = when.map(|(at, v)| condition(v, format!("{path}.when[{at}]"), namespace));
    Ok(Rule {
        from: from.collect::<Result<_, _>>()?,
        to: to.collect::<Result<_, _>>()?,
        when: when.collect::<Result<_, _>>()?,
    })
}

fn source(value: &Value, path: &str, namespace: &str) -> Result<Source, String> {
    const SERVED: [&str; 8] = [
        "principals",
        "notPrincipals",
        "namespaces",
        "notNamespaces",
        "serviceAccounts",
        "notServiceAccounts",
        "ipBlocks",
        "notIpBlocks",
    ];
    // Trust domains are no matter of HTTP, but Istio's layer 4 does not serve them either.
    const HTTP: [&str; 6] = [
        "requestPrincipals",
        "notRequestPrincipals",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
        "trustDomains",
        "notTrustDomains",
    ];
    let outer = Fields::open(value, path.to_owned(), &["source"])?;
    let known = [&SERVED[..], &HTTP[..]].concat();
    let fields = Fields::open(outer.value("source"), outer.at("source"), &known)?;
    let account = |text: &str| ServiceAccount::parse(text, namespace);
    Ok(Source {
        principals: Values {
            any: fields.parsed("principals", Pattern::parse_principal)?,
            none: fields.parsed("notPrincipals", Pattern::parse_principal)?,
        },
        namespaces: Values {
            any: fields.parsed("namespaces", Pattern::parse)?,
            none: fields.parsed("notNamespaces", Pattern::parse)?,
        },
        service_accounts: Values {
            any: fields.parsed("serviceAccounts", account)?,
            none: fields.parsed("notServiceAccounts", account)?,
        },
        ip_blocks: Values {
            any: fields.parsed("ipBlocks", block)?,
            none: fields.parsed("notIpBlocks", block)?,
        },
        needs_http: set(&fields, &HTTP)?,
    })
}

fn operation(value: &Value, path: &str) -> Result<Operation, String> {
    const HTTP: [&str; 6] = [
        "hosts",
        "notHosts",
        "methods",
        "notMethods",
        "paths",
        "notPaths",
    ];
    let outer = Fields::open(value, path.to_owned(), &["operation"])?;
    let known = [&["ports", "notPorts"][..], &HTTP[..]].concat();
    let fields = Fields::open(outer.value("operation"), outer.at("operation"), &known)?;
    Ok(Operation {
        ports: Values {
            any: fields.ports("ports")?,
            none: fields.ports("notPorts")?,
        },
        needs_http: set(&fields, &HTTP)?,
    })
}

/// Those of `names` that hold a list with something in it.
fn set(fields: &Fields<'_>, names: &[&'static str]) -> Result<Vec<&'static str>, String> {
    let mut found = Vec::new();
    for name in names {
        if !fields.list(name)?.is_empty() {
            found.push(*name);
        }
    }
    Ok(found)
}

fn condition(value: &Value, path: String, namespace: &str) -> Result<Condition, String> {
    let fields = Fields::open(value, path, &["key", "values", "notValues"])?;
    let key = fields.text("key")?.unwrap_or_default();
    if fields.list("values")?.is_empty() && fields.list("notValues")?.is_empty() {
        return Err(format!(
            "{} and notValues are both empty",
            fields.at("values")
        ));
    }
    let account = |text: &str| ServiceAccount::parse(text, namespace);
    Ok(match key {
        "source.ip" => Condition::SourceIp(values(&fields, block)?),
        "source.namespace" => Condition::SourceNamespace(values(&fields, Pattern::parse)?),
        "source.principal" => {
            Condition::SourcePrincipal(values(&fields, Pattern::parse_principal)?)
        }
        "source.serviceAccount" => Condition::SourceServiceAccount(values(&fields, account)?),
        "destination.ip" => Condition::DestinationIp(values(&fields, block)?),
        "destination.port" => Condition::DestinationPort(Values {
            any: fields.ports("values")?,
            none: fields.ports("notValues")?,
        }),
        other if needs_http(other) => Condition::NeedsHttp(other.to_owned()),
        other => {
            return Err(format!(
                "{} is {other:?}, no known attribute",
                fields.at("key")
            ));
        }
    })
}

fn values<T>(
    fields: &Fields<'_>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Values<T>, String> {
    Ok(Values {
        any: fields.parsed("values", &parse)?,
        none: fields.parsed("notValues", &parse)?,
    })
}

/// Whether Istio knows the attribute, and layer 4 does not serve it.
fn needs_http(key: &str) -> bool {
    const WHOLE: [&str; 6] = [
        "remote.ip",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "connection.sni",
        "source.trustDomain",
    ];
    const START: [&str; 3] = [
        "request.headers[",
        "request.auth.claims[",
        "experimental.envoy.filters.",
    ];
    WHOLE.contains(&key) || START.iter().any(|start| key.starts_with(start))
}

/// What the author of a policy with this body should know.
fn remarks(body: &Body) -> Vec<Notice> {
    let (action, rules) = match body {
        Body::Rules { action, rules } => (*action, rules),
        Body::Refuse { why } => {
            return vec![Notice {
                kind: NoticeKind::NotUnderstood,
                text: format!("{why}; every flow to the workloads it binds is refused"),
            }];
        }
    };
    let each = rules.iter().enumerate().flat_map(|(at, rule)| {
        let http: Vec<String> = rule.needs_http().collect();
        let effect = match action {
            Action::Allow => "so this ALLOW rule never matches",
            Action::Deny => "so this DENY rule is enforced without it and refuses more",
        };
        let http = (!http.is_empty()).then(|| Notice {
            kind: NoticeKind::NeedsHttp,
            text: format!(
                "spec.rules[{at}] needs what layer 4 does not serve ({}), {effect}",
                http.join(", ")
            ),
        });
        let never = never_matching(rule).map(move |what| Notice {
            kind: NoticeKind::NeverMatches,
            text: format!("spec.rules[{at}].{what}"),
        });
        http.into_iter().chain(never)
    });
    each.collect()
}

/// The parts of a rule that match no flow whatever.
fn never_matching(rule: &Rule) -> impl Iterator<Item = String> {
    let empty_from = rule.from.iter().enumerate().filter(|(_, s)| s.is_empty());
    let empty_from = empty_from.map(|(at, _)| format!("from[{at}].source sets no field"));
    let empty_to = rule.to.iter().enumerate().filter(|(_, o)| o.is_empty());
    let empty_to = empty_to.map(|(at, _)| format!("to[{at}].operation sets no field"));
    let from = rule.from.iter().enumerate().flat_map(|(at, source)| {
        strangers(&source.principals)
            .map(move |text| format!("from[{at}].source names {text:?}, no identity of a mesh"))
    });
    let when = rule.when.iter().enumerate().flat_map(|(at, condition)| {
        let principals = match condition {
            Condition::SourcePrincipal(values) => Some(values),
            _ => None,
        };
        let found = principals.into_iter().flat_map(strangers);
        found.map(move |text| format!("when[{at}] names {text:?}, no identity of a mesh"))
    });
    empty_from.chain(empty_to).chain(from).chain(when)
}

/// Exact principals that are the text of no [`Identity`], and so equal none.
fn strangers(values: &Values<Pattern>) -> impl Iterator<Item = &str> {
    let all = values.any.iter().chain(&values.none);
    all.filter_map(|pattern| match pattern {
        Pattern::Exact(text) if Identity::parse(&format!("spiffe://{text}")).is_err() => {
            Some(&**text)
        }
        _ => None,
    })
}
