//! A client of governance that speaks nothing but the protocol: what a node's store is, seen from
//! there.

use std::collections::BTreeMap;

use governance_stream::{
    message::{OpeningId, OutboxId, SignatureRequest},
    proto::{
        self, Kind, Lane, stream_client::StreamClient, stream_request, stream_response::Control,
    },
    simulator::Simulator,
};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::PATIENCE;

/// Whose stores they are.
pub const NODE: &str = "node-1";
const LANES: [Lane; 4] = [Lane::Signing, Lane::Federation, Lane::Pegin, Lane::Proposal];

/// A store of the node, as governance sees it: what a client of it has received.
pub struct Store {
    pub outbox_id: OutboxId,
    pub epoch: u64,
    /// Names the process that has it open.
    pub opening_id: OpeningId,
    pub restored: bool,
    pub federation_version: u32,
    /// In each lane, the last sequence and message id that were received.
    pub received: BTreeMap<i32, (u64, Vec<u8>)>,
    /// In each lane, the last sequence that was used.
    pub sent: BTreeMap<i32, u64>,
}

impl Store {
    pub fn new(restored: bool) -> Self {
        Self {
            outbox_id: OutboxId::generate(),
            epoch: 0,
            opening_id: OpeningId::generate(),
            restored,
            federation_version: 1,
            received: BTreeMap::new(),
            sent: BTreeMap::new(),
        }
    }

    pub fn registration(&self) -> proto::NodeRegistration {
        let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        let key: bitcoin::secp256k1::PublicKey = key.parse().expect("on the curve");
        let lanes = LANES.map(|lane| {
            let received = self.received.get(&lane.into()).cloned();
            let (received, id) = received.unwrap_or_default();
            proto::LaneState {
                lane: lane.into(),
                first_retained: 1,
                next_new: self.sent.get(&lane.into()).map_or(1, |last| last + 1),
                next_expected: received + 1,
                last_received_message_id: id.into(),
                window_messages: 10_000,
                window_bytes: 64 << 20,
            }
        });
        proto::NodeRegistration {
            node_id: NODE.to_owned(),
            public_key: key.serialize().to_vec().into(),
            chain_id: "alys-regtest".to_owned(),
            protocol_version: 1,
            outbox_id: self.outbox_id.to_bytes().to_vec().into(),
            epoch: self.epoch,
            opening_id: self.opening_id.to_bytes().to_vec().into(),
            lanes: lanes.to_vec(),
            network: proto::BitcoinNetwork::Regtest.into(),
            federation_version: self.federation_version,
            restored: self.restored,
            ..Default::default()
        }
    }

    /// Registers in the next epoch.
    pub async fn register(&mut self, simulator: &Simulator) -> Result<Session, proto::Error> {
        self.epoch += 1;
        self.register_again(simulator).await
    }

    /// Registers in the same epoch, as a store that went back would.
    pub async fn register_again(&self, simulator: &Simulator) -> Result<Session, proto::Error> {
        let mut client = StreamClient::connect(simulator.endpoints()[0].clone()).await;
        let client = client.as_mut().expect("listens");
        let (frames, outgoing) = mpsc::channel(64);
        let registration = stream_request::Control::Registration(self.registration());
        let first = proto::StreamRequest {
            control: Some(registration),
            ..Default::default()
        };
        frames.send(first).await.expect("room");
        let responses = client.bidirectional_stream(ReceiverStream::new(outgoing));
        let mut responses = responses.await.expect("opens").into_inner();
        match next(&mut responses).await.and_then(|frame| frame.control) {
            Some(Control::RegistrationAck(ack)) => Ok(Session {
                frames,
                responses,
                ack,
                early: Vec::new(),
            }),
            Some(Control::Error(error)) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    /// The next message of a lane.
    pub fn message(&mut self, lane: Lane, kind: Kind, payload: Vec<u8>) -> proto::SequencedMessage {
        let sequence = self.sent.entry(lane.into()).or_default();
        *sequence += 1;
        proto::SequencedMessage {
            lane: lane.into(),
            sequence: *sequence,
            message_id: uuid::Uuid::now_v7().as_bytes().to_vec().into(),
            kind: kind.into(),
            payload: payload.into(),
            ..Default::default()
        }
    }

    pub fn request(&mut self, request: &SignatureRequest) -> proto::SequencedMessage {
        let payload = proto::SignatureRequest::from(request).encode_to_vec();
        self.message(Lane::Signing, Kind::SignatureRequest, payload)
    }
}

/// A session that governance accepted.
pub struct Session {
    pub frames: mpsc::Sender<proto::StreamRequest>,
    pub responses: Streaming<proto::StreamResponse>,
    pub ack: proto::RegistrationAck,
    /// Sequenced messages that came while something else was awaited.
    pub early: Vec<proto::SequencedMessage>,
}

async fn next(responses: &mut Streaming<proto::StreamResponse>) -> Option<proto::StreamResponse> {
    let frame = tokio::time::timeout(PATIENCE, responses.message()).await;
    frame.expect("it says something").ok().flatten()
}

impl Session {
    pub async fn send(&self, messages: Vec<proto::SequencedMessage>) {
        let frame = proto::StreamRequest {
            messages,
            ..Default::default()
        };
        self.frames.send(frame).await.expect("it lives");
    }

    pub async fn ask(&mut self, control: stream_request::Control) {
        let frame = proto::StreamRequest {
            control: Some(control),
            ..Default::default()
        };
        self.frames.send(frame).await.expect("it lives");
    }

    /// The next control message; nothing when the session has ended.
    pub async fn answer(&mut self) -> Option<Control> {
        loop {
            let frame = next(&mut self.responses).await?;
            self.early.extend(frame.messages);
            if frame.control.is_some() {
                return frame.control;
            }
        }
    }

    /// The error that ends it.
    pub async fn refused(&mut self) -> proto::Error {
        match self.answer().await {
            Some(Control::Error(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    /// So many sequenced messages, which the store then has.
    pub async fn receive(
        &mut self,
        store: &mut Store,
        count: usize,
    ) -> Vec<proto::SequencedMessage> {
        while self.early.len() < count {
            let frame = next(&mut self.responses).await.expect("it goes on");
            self.early.extend(frame.messages);
        }
        let messages: Vec<_> = self.early.drain(..count).collect();
        for message in &messages {
            let received = (message.sequence, message.message_id.to_vec());
            store.received.insert(message.lane, received);
        }
        messages
    }

    /// Lists these requests, which is answered with how they stand.
    pub async fn list(&mut self, reconcile_id: [u8; 16], listed: &[SignatureRequest]) -> Vec<i32> {
        let pages = listed.chunks(1024);
        let pages: Vec<&[SignatureRequest]> = if listed.is_empty() {
            vec![&[]]
        } else {
            pages.collect()
        };
        let mut standings = Vec::new();
        for (number, page) in pages.iter().enumerate() {
            let open = |request: &SignatureRequest| proto::OpenRequest {
                request_id: request.request_id().to_string(),
                payload_hash: request.payload_hash().to_vec().into(),
                cancelled: false,
            };
            self.ask(stream_request::Control::Reconcile(proto::Reconcile {
                reconcile_id: reconcile_id.to_vec().into(),
                page: u32::try_from(number).expect("few"),
                last_page: number + 1 == pages.len(),
                open_requests: page.iter().map(open).collect(),
            }))
            .await;
            match self.answer().await {
                Some(Control::ReconcileResponse(answer)) => {
                    assert!(answer.unlisted.is_empty(), "they are recalled");
                    standings.extend(answer.standings.iter().map(|one| one.standing));
                }
                other => panic!("{other:?}"),
            }
        }
        standings
    }

    /// Asks for this page of what governance remembers.
    pub async fn recall(&mut self, reconcile_id: [u8; 16], page: u32) -> proto::RecallPage {
        self.ask(recall(reconcile_id, page, false)).await;
        match self.answer().await {
            Some(Control::RecallPage(page)) => page,
            other => panic!("{other:?}"),
        }
    }

    /// Everything that governance remembers, and on how many pages.
    pub async fn recall_all(&mut self, reconcile_id: [u8; 16]) -> (Vec<proto::Recalled>, u32) {
        let mut entries = Vec::new();
        for number in 0.. {
            let page = self.recall(reconcile_id, number).await;
            let bytes: usize = page.entries.iter().map(|entry| entry.payload.len()).sum();
            assert!(page.entries.len() <= 256 && bytes <= 1 << 20, "{bytes}");
            entries.extend(page.entries);
            if page.last_page {
                return (entries, number + 1);
            }
        }
        unreachable!("pages end")
    }

    pub async fn finish(&mut self, reconcile_id: [u8; 16], pages: u32) {
        self.ask(recall(reconcile_id, pages, true)).await;
    }
}

pub fn recall(reconcile_id: [u8; 16], page: u32, finished: bool) -> stream_request::Control {
    stream_request::Control::Recall(proto::Recall {
        reconcile_id: reconcile_id.to_vec().into(),
        page,
        finished,
    })
}
