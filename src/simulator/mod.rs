//! Governance itself, for the demo, the tests and the benches: a federation of real keys that
//! signs real sighashes behind a real gRPC server.
//!
//! It shares only the generated wire types with the node, so that one bug cannot hide in both. It
//! is strict: whatever a node does that the protocol does not allow, or that no script asked for,
//! is a violation, and [`Simulator::assert_clean`] fails on it. It holds signing keys: the
//! `simulator` feature never belongs into a node.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "governance signs"
)]

mod config;
mod endpoints;
mod federation;
mod lane;
mod ledger;
mod pace;
pub mod proxy;
pub mod record;
mod script;
mod service;
mod signer;
mod tls;
mod trace;
pub mod wallet;

use std::{fmt, net::SocketAddr, time::Duration};

use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::{message::OutboxId, proto};
use endpoints::EndpointHandle;
use federation::Federation;
use ledger::Ledger;
use service::Shared;

pub use config::{Answering, SimulatorConfig, SimulatorError};
pub use federation::{FederationView, RotationPlan};
pub use ledger::{LedgerView, OutboxStanding, OutboxView, RequestView};
pub use proxy::Proxy;
pub use script::Behaviour;
pub use tls::SimulatorTls;

/// A running governance service. Dropping it stops its endpoints; [`Simulator::shutdown`] also
/// waits for them.
pub struct Simulator {
    shared: Shared,
    endpoints: Vec<EndpointHandle>,
    /// What new connections are accepted with.
    tls: watch::Sender<Option<TlsAcceptor>>,
}

impl fmt::Debug for Simulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulator")
            .field("endpoints", &self.endpoints())
            .finish_non_exhaustive()
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        for running in self
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.running.as_ref())
        {
            running.stop.cancel();
        }
    }
}

impl Simulator {
    /// Starts the service on every address of the configuration.
    ///
    /// # Errors
    ///
    /// When the federation cannot exist, an address is not loopback or cannot be listened on, or a
    /// certificate cannot be used.
    pub async fn start(config: SimulatorConfig) -> Result<Self, SimulatorError> {
        let SimulatorConfig {
            seed,
            members,
            threshold,
            network,
            ..
        } = config;
        let listen = config.listen.clone();
        let first = Federation::first(seed, members, threshold, network, &config.chain_id)
            .ok_or(SimulatorError::Federation { threshold, members })?;
        let recorded = match &config.directory {
            Some(directory) => {
                let failed = |error| SimulatorError::Record {
                    directory: directory.clone(),
                    error,
                };
                Some(record::Record::open(directory).map_err(failed)?)
            }
            None => None,
        };
        let tls = config
            .tls
            .as_ref()
            .map(SimulatorTls::acceptor)
            .transpose()?;
        let mut ledger = Ledger::new(config, first, recorded);
        ledger.commit();
        let shared = Shared::new(ledger);
        let mut simulator = Self {
            shared,
            endpoints: Vec::new(),
            tls: watch::Sender::new(tls),
        };
        for (index, address) in listen.into_iter().enumerate() {
            let (address, running) = simulator.serve(index, address).await?;
            simulator.endpoints.push(EndpointHandle {
                address,
                running: Some(running),
            });
        }
        Ok(simulator)
    }

    /// The endpoints' URIs, in the configuration's order.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        let scheme = match *self.tls.borrow() {
            Some(_) => "https",
            None => "http",
        };
        self.endpoints
            .iter()
            .map(|endpoint| format!("{scheme}://{}", endpoint.address))
            .collect()
    }

    /// Where they listen, for whoever stands in between.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let endpoints = self.endpoints.iter();
        endpoints.map(|endpoint| endpoint.address).collect()
    }

    /// Stops everything and waits for it.
    pub async fn shutdown(mut self) {
        for index in 0..self.endpoints.len() {
            self.stop_endpoint(index).await;
        }
        self.shared.change(Ledger::close);
    }

    /// A point to which the ledger can be [restored](Self::restore).
    #[must_use]
    pub fn checkpoint(&self) -> usize {
        self.shared.read().length()
    }

    /// Restores the ledger as it was at a checkpoint: under a new id, as it should be, or wrongly
    /// under the same. Every session ends.
    pub fn restore(&self, checkpoint: usize, same_id: bool) {
        self.shared
            .change(|ledger| ledger.restore(checkpoint, same_id));
    }

    /// Loses everything but the keys: a new ledger begins. Every session ends.
    pub fn lose_ledger(&self) {
        self.shared.change(Ledger::lose);
    }

    /// Has an endpoint serve an older copy, as a replica that lags behind would; `None` lets it
    /// catch up.
    pub fn lag(&self, endpoint: usize, checkpoint: Option<usize>) {
        let lagging = checkpoint.map(|checkpoint| (endpoint, checkpoint));
        self.shared.change(|ledger| ledger.lag(lagging));
    }

    /// Lets an outbox take the place of a node's earlier ones, as governance's operator does for a
    /// store that is new or restored: once, and those are retired for ever. A session of theirs ends.
    ///
    /// # Errors
    ///
    /// When the node is unknown, or the outbox is retired or served already.
    pub fn allow_outbox(&self, node_id: &str, outbox_id: OutboxId) -> Result<(), String> {
        self.shared
            .change(|ledger| ledger.permit(node_id, &outbox_id.to_bytes()))
    }

    /// Ends every live session without a warning.
    pub fn cut(&self) {
        self.shared.change(|ledger| ledger.cut(None));
    }

    /// Asks every live session to move elsewhere.
    pub fn drain(&self, reason: &str) {
        self.ask_to_leave(None, Duration::from_secs(1), reason);
    }

    /// Asks every live session of one endpoint to move elsewhere within `grace`. It does not end
    /// them by itself: [`cut`](Self::cut) does.
    pub fn drain_endpoint(&self, endpoint: usize, grace: Duration, reason: &str) {
        self.ask_to_leave(Some(endpoint), grace, reason);
    }

    fn ask_to_leave(&self, endpoint: Option<usize>, grace: Duration, reason: &str) {
        let drain = proto::Drain {
            grace_ms: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX),
            reason: reason.to_owned(),
        };
        let control = proto::stream_response::Control::Drain(drain);
        self.shared
            .change(|ledger| ledger.tell_sessions(endpoint, &control));
    }

    /// Demands another token of new calls; none when `None`. `end_sessions` also ends the live
    /// ones, as unauthenticated.
    pub fn set_token(&self, token: Option<&str>, end_sessions: bool) {
        self.shared
            .change(|ledger| ledger.set_token(token.map(str::to_owned), end_sessions));
    }

    /// Shows another certificate, or makes other demands, to new connections.
    ///
    /// # Errors
    ///
    /// When it cannot be used; then the old one stays.
    pub fn set_tls(&self, tls: &SimulatorTls) -> Result<(), SimulatorError> {
        self.tls.send_replace(Some(tls.acceptor()?));
        Ok(())
    }

    /// Sends this frame to every live session, as it is.
    pub fn inject(&self, frame: &proto::StreamResponse) {
        self.shared.change(|ledger| ledger.inject(frame));
    }

    /// Says this to the next registration that is accepted, instead of the real answer.
    pub fn answer_next_registration_with(&self, frame: proto::StreamResponse) {
        self.shared
            .change(|ledger| ledger.script.registration_answers.push_back(frame));
    }

    /// As [`go_silent`](Self::go_silent) and [`speak`](Self::speak), for one endpoint alone. Its
    /// health is still told: that is not the stream's.
    pub fn silence(&self, endpoint: usize, silent: bool) {
        self.shared.change(|ledger| {
            let endpoints = &mut ledger.script.silent_endpoints;
            if silent {
                endpoints.insert(endpoint);
            } else {
                endpoints.remove(&endpoint);
            }
        });
    }

    /// Reports an error that does not end the session.
    pub fn report_error(&self, code: proto::ErrorCode, message: &str) {
        let message = message.to_owned();
        let error = proto::Error {
            code: code.into(),
            message,
            ..Default::default()
        };
        let control = proto::stream_response::Control::Error(error);
        self.shared
            .change(|ledger| ledger.tell_sessions(None, &control));
    }

    /// Refuses the next registration.
    pub fn refuse_next_registration(&self, code: proto::ErrorCode) {
        self.shared
            .change(|ledger| ledger.script.refusals.push_back(code));
    }

    /// Reads nothing and says nothing, while the connections stay open.
    pub fn go_silent(&self) {
        self.shared.change(|ledger| ledger.script.silent = true);
    }

    /// Takes what nodes send and answers their heartbeats, but acknowledges nothing; or does again.
    pub fn withhold_acknowledgements(&self, withholding: bool) {
        self.shared
            .change(|ledger| ledger.script.withholding = withholding);
    }

    /// Takes what nodes ask of a reconciliation and leaves it unanswered; or answers again.
    pub fn leave_reconciliation_unanswered(&self, unanswered: bool) {
        self.shared
            .change(|ledger| ledger.script.reconciliation_unanswered = unanswered);
    }

    /// Ends the silence.
    pub fn speak(&self) {
        self.shared.change(|ledger| ledger.script.silent = false);
    }

    /// How many members are away from now on. They sign nothing: with too few left, requests wait
    /// with what the others have signed, and those who come back sign what waits.
    pub fn set_offline_members(&self, members: usize) {
        self.shared
            .change(|ledger| ledger.set_offline_members(members));
    }

    /// Keeps responses to signature requests back.
    pub fn hold_responses(&self) {
        self.shared.change(|ledger| ledger.script.holding = true);
    }

    /// Lets go of them, in their order.
    pub fn release_responses(&self) {
        self.shared.change(Ledger::release);
    }

    /// How the next signature request is answered that no earlier call spoke for.
    pub fn answer_next(&self, behaviour: Behaviour) {
        self.shared
            .change(|ledger| ledger.script.behaviours.push_back(behaviour));
    }

    /// Sends every node a message of `lane` whose payload is none.
    pub fn send_garbage(&self, lane: proto::Lane) {
        self.shared.change(|ledger| ledger.send_garbage(lane));
    }

    /// Puts a proposal to every node.
    pub fn propose(&self, proposal: &proto::ProposalNotification) {
        self.shared.change(|ledger| ledger.propose(proposal));
    }

    /// The next federation takes over, approved by a quorum of the present one, and every node
    /// is told. `None` when the plan cannot be.
    pub fn rotate_federation(&self, plan: &RotationPlan) -> Option<FederationView> {
        self.shared.change(|ledger| {
            let (next, update) = ledger.next_federation(plan)?;
            let view = next.view();
            ledger.adopt(plan, next, &update);
            Some(view)
        })
    }

    /// The update that [`rotate_federation`](Self::rotate_federation) would announce, for a test
    /// to spoil. `None` when the plan cannot be.
    #[must_use]
    pub fn build_update(&self, plan: &RotationPlan) -> Option<proto::FederationUpdate> {
        self.shared
            .read()
            .next_federation(plan)
            .map(|(_, update)| update)
    }

    /// Announces an update, right or wrong, that changes nothing here.
    pub fn announce(&self, update: &proto::FederationUpdate) {
        self.shared.change(|ledger| ledger.announce(update));
    }

    /// A version of the federation, if there is one.
    #[must_use]
    pub fn federation(&self, version: u32) -> Option<FederationView> {
        let ledger = self.shared.read();
        ledger
            .federations()
            .iter()
            .find(|f| f.version == version)
            .map(Federation::view)
    }

    /// The record as of now.
    #[must_use]
    pub fn ledger(&self) -> LedgerView {
        self.shared.read().view()
    }

    /// Waits until the record is as wanted; the last look at it either way.
    ///
    /// # Errors
    ///
    /// The record as it was when the time was up.
    pub async fn wait_for(
        &self,
        within: Duration,
        wanted: impl Fn(&LedgerView) -> bool,
    ) -> Result<LedgerView, Box<LedgerView>> {
        let mut bell = self.shared.bell();
        let arrives = async {
            loop {
                bell.mark_unchanged();
                let view = self.ledger();
                if wanted(&view) || bell.changed().await.is_err() {
                    return view;
                }
            }
        };
        tokio::time::timeout(within, arrives)
            .await
            .map_err(|_| Box::new(self.ledger()))
    }

    /// Fails when a node did what no script expected, or a script's expectation was not met.
    ///
    /// # Panics
    ///
    /// With every violation.
    #[allow(clippy::panic, reason = "this is an assertion")]
    pub fn assert_clean(&self) {
        let ledger = self.shared.read();
        let violations = ledger.view().violations;
        let (rejects, behaviours) = (
            ledger.script.expected_rejects,
            ledger.script.behaviours.clone(),
        );
        let answers = ledger.script.registration_answers.len();
        drop(ledger);
        if !violations.is_empty() || rejects + answers > 0 || !behaviours.is_empty() {
            panic!(
                "violations: {violations:#?}; rejects still expected: {rejects}; behaviours never \
                 used: {behaviours:?}; registrations still to be answered: {answers}"
            );
        }
    }
}
