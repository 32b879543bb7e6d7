//! Label selectors as Kubernetes has them: pairs and expressions, all of which must hold.

use serde::Deserialize;

use crate::check::shape::nullable;
use crate::mesh::Labels;
use std::collections::BTreeMap;

/// A label selector. An empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    #[serde(default, deserialize_with = "nullable")]
    match_labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable")]
    match_expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Expression {
    key: String,
    operator: String,
    #[serde(default, deserialize_with = "nullable")]
    values: Vec<String>,
}

impl Selector {
    /// Whether these labels are selected. An operator that is not known selects nothing.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let has = |key: &str| labels.get(key).map(|value| &**value);
        let pairs = &self.match_labels;
        pairs
            .iter()
            .all(|(key, value)| has(key) == Some(value.as_str()))
            && self.match_expressions.iter().all(|expression| {
                let value = has(&expression.key);
                let among = value.is_some_and(|value| expression.values.iter().any(|v| v == value));
                match expression.operator.as_str() {
                    "In" => among,
                    "NotIn" => !among,
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn pairs_and_expressions_must_all_hold() {
        let labels = [("app", "web"), ("tier", "front")];
        let labels = Labels::new(labels.map(|(k, v)| (Arc::from(k), Arc::from(v))));
        let check = |selector: serde_json::Value, expect: bool| {
            let read: Selector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(read.matches(&labels), expect, "{selector}");
        };
        let expression = |key: &str, operator: &str, values: &[&str]| json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
        check(json!({}), true);
        check(
            json!({ "matchLabels": null, "matchExpressions": null }),
            true,
        );
        check(json!({ "matchLabels": { "app": "web" } }), true);
        check(json!({ "matchLabels": { "app": "db" } }), false);
        check(json!({ "matchLabels": { "app": "web", "x": "y" } }), false);
        check(expression("app", "In", &["db", "web"]), true);
        check(expression("app", "NotIn", &["db"]), true);
        check(expression("none", "NotIn", &["db"]), true);
        check(expression("tier", "Exists", &[]), true);
        check(expression("tier", "DoesNotExist", &[]), false);
        check(expression("app", "Like", &["web"]), false);
    }
}
