//! What a node reports of itself.

/// The node's state, for governance's eyes; the latest replaces the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Height of the sidechain's best block.
    pub chain_height: u64,
    /// Height of the Bitcoin chain that the node follows.
    pub bitcoin_height: u64,
    /// Whether both are caught up.
    pub synced: bool,
    /// Connected peers.
    pub peers: u32,
    /// For people, at most 256 characters.
    pub detail: String,
}
