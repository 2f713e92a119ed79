use super::*;
use crate::simulator::federation::Federation;

#[test]
fn a_frame_that_comes_as_its_session_ends_is_no_fault_of_the_node() {
    let config = SimulatorConfig::default();
    let (members, threshold) = (config.members, config.threshold);
    let (network, chain) = (config.network, config.chain_id.clone());
    let first = Federation::first(config.seed, members, threshold, network, &chain);
    let mut ledger = Ledger::new(config, first.expect("a federation"), None);
    let lanes = LANES.map(|lane| proto::LaneState {
        lane: lane.into(),
        first_retained: 1,
        next_new: 1,
        next_expected: 1,
        ..Default::default()
    });
    let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    let key: bitcoin::secp256k1::PublicKey = key.parse().expect("on the curve");
    let registration = proto::NodeRegistration {
        node_id: "node-1".to_owned(),
        public_key: key.serialize().to_vec().into(),
        chain_id: chain,
        network: wire_network(network).into(),
        protocol_version: 1,
        outbox_id: vec![1; 16].into(),
        opening_id: vec![2; 16].into(),
        epoch: 1,
        lanes: lanes.to_vec(),
        ..Default::default()
    };
    let (key, _) = ledger.register(&registration, 0).expect("accepted");
    ledger.lose();
    let message = proto::SequencedMessage {
        lane: proto::Lane::Pegin.into(),
        sequence: 1,
        message_id: vec![1; 16].into(),
        ..Default::default()
    };
    let frame = proto::StreamRequest {
        messages: vec![message],
        ..Default::default()
    };
    assert_eq!(ledger.take(&key, frame, Instant::now()), Ok(false));
    assert_eq!(ledger.violations, [""; 0]);
}
