//! Placeholder of the authorize stage, to compile the tunnel against.

use crate::mesh::Flow;

/// Proof that policy allowed a flow.
#[derive(Debug)]
pub struct Permit(Flow);

impl Permit {
    /// What was permitted.
    #[must_use]
    pub fn flow(&self) -> &Flow {
        &self.0
    }
}

/// A permit for a connection that leaves: policy is enforced at the destination.
#[must_use]
pub fn outbound(flow: Flow) -> Permit {
    Permit(flow)
}
