//! Placeholder of the policy values, replaced by the authorize branch.

use std::collections::BTreeMap;

macro_rules! policy {
    ($name:ident) => {
        /// A policy object.
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            /// `metadata.name`.
            pub name: String,
            /// `metadata.namespace`.
            pub namespace: String,
        }

        impl $name {
            /// Reads the object; never fails.
            #[must_use]
            pub fn read(
                name: &str,
                namespace: &str,
                _annotations: &BTreeMap<String, String>,
                _spec: &serde_json::Value,
            ) -> Self {
                Self {
                    name: name.to_owned(),
                    namespace: namespace.to_owned(),
                }
            }
        }
    };
}

policy!(AuthorizationPolicy);
policy!(PeerAuthentication);
