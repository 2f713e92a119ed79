//! The store against a simple reference: for any sequence of updates, heights, reorganisations,
//! restarts, failing commits and processes that end with them, the federation that signs is the reference's.

use proptest::{prelude::*, strategy::Union};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use super::{
    ChainStore, FederationEvent, FederationStanding, HeightError, HeightReport, Scheduling,
    test_support::{Disk, Failure, PLAN, governance, schedule, until_open, update},
};
use crate::{
    message::FederationUpdate,
    proto::FederationUpdateKind as Kind,
    simulator::{RotationPlan, Simulator},
};

/// What is told to the store.
#[derive(Debug, Clone)]
enum Told {
    /// The next version, approved. The height since which the node was there is so far below its
    /// own.
    Next(Plan, u64),
    /// A version that was accepted before; the number chooses among them.
    Again(usize),
    /// Another update of a version that was accepted before, approved by the same quorum.
    Rival(usize),
    /// The next version but one.
    Gap(Plan),
    /// The next version with an approval too few.
    Forged(Plan),
    Height(HeightReport),
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    activation: u64,
    notice: u32,
    grace: u32,
    kind: Kind,
}

impl From<Plan> for RotationPlan {
    fn from(plan: Plan) -> Self {
        Self {
            activation_height: plan.activation,
            notice_blocks: plan.notice,
            grace_blocks: plan.grace,
            kind: plan.kind,
            ..PLAN
        }
    }
}

/// What happens while the store makes it durable.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Well,
    /// The process ends after it.
    Restart,
    /// The commit fails, and the same is told again.
    DiskFails(Failure),
    /// The same, and the process ends: the next one begins from what the disk then holds.
    Dies(Failure),
}

#[derive(Debug, Clone)]
struct Step {
    told: Told,
    fate: Fate,
}

#[derive(Debug, Clone, Copy)]
struct Version {
    activation: u64,
    grace: u32,
    paused: bool,
}

/// The reference: the versions, a height, and what follows from both.
#[derive(Debug, Clone)]
struct Reference {
    versions: Vec<Version>,
    height: u64,
    /// What the last step was answered.
    answer: Result<(), &'static str>,
}

impl Reference {
    fn active(&self) -> usize {
        let reached = |version: &Version| version.activation <= self.height;
        self.versions.iter().rposition(reached).unwrap_or_default()
    }

    fn standing(&self, index: usize) -> FederationStanding {
        let active = self.active();
        if index > active {
            return FederationStanding::Scheduled;
        }
        if index == active {
            return FederationStanding::Active;
        }
        let next = self.versions[index + 1];
        if self.height < next.activation + u64::from(next.grace) {
            FederationStanding::Retiring
        } else {
            FederationStanding::Retired
        }
    }

    fn judge(&mut self, told: &Told) -> Result<(), &'static str> {
        let last = *self.versions.last().expect("the first");
        match *told {
            Told::Next(plan, ago) => {
                if plan.activation < last.activation {
                    return Err("overtakes");
                }
                let due = plan.activation as i64 - i64::from(plan.notice);
                let late = (self.height as i64) > due;
                let away = self.height.saturating_sub(ago) as i64 > due.max(0);
                if late && !away {
                    return Err("notice");
                }
                let paused = match plan.kind {
                    Kind::Pause => true,
                    Kind::Resume => false,
                    _ => last.paused,
                };
                self.versions.push(Version {
                    activation: plan.activation,
                    grace: plan.grace,
                    paused,
                });
            }
            Told::Again(_) => {}
            Told::Rival(_) => return Err("replaced"),
            Told::Gap(_) => return Err("not_next"),
            Told::Forged(plan) if plan.activation < last.activation => return Err("overtakes"),
            Told::Forged(_) => return Err("quorum"),
            Told::Height(HeightReport::Reached(height)) if height < self.height => {
                return Err("lower");
            }
            Told::Height(HeightReport::Reached(height) | HeightReport::Reorganised(height)) => {
                self.height = height;
            }
        }
        Ok(())
    }
}

fn plan() -> impl Strategy<Value = Plan> {
    let kind = prop_oneof![
        4 => Just(Kind::Scheduled),
        1 => Just(Kind::Emergency),
        1 => Just(Kind::Pause),
        1 => Just(Kind::Resume),
    ];
    (0..120_u64, 0..20_u32, 0..40_u32, kind).prop_map(|(activation, notice, grace, kind)| Plan {
        activation,
        notice,
        grace,
        kind,
    })
}

fn failure() -> impl Strategy<Value = Failure> {
    prop_oneof![Just(Failure::Lost), Just(Failure::Applied)]
}

impl ReferenceStateMachine for Reference {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        let first = Version {
            activation: 0,
            grace: 0,
            paused: false,
        };
        Just(Self {
            versions: vec![first],
            height: 0,
            answer: Ok(()),
        })
        .boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Step> {
        let (height, last) = (state.height, state.versions[state.versions.len() - 1]);
        // Most often one that may follow, near the present height.
        let sensible = plan().prop_map(move |plan| Plan {
            activation: last.activation.max(height) + plan.activation % 40,
            ..plan
        });
        let reached = (0..30_u64).prop_map(move |more| HeightReport::Reached(height + more));
        let mut told = vec![
            (
                6,
                (sensible, Just(1000))
                    .prop_map(|(plan, ago)| Told::Next(plan, ago))
                    .boxed(),
            ),
            (
                2,
                (plan(), 0..40_u64)
                    .prop_map(|(plan, ago)| Told::Next(plan, ago))
                    .boxed(),
            ),
            (1, plan().prop_map(Told::Gap).boxed()),
            (1, plan().prop_map(Told::Forged).boxed()),
            (8, reached.prop_map(Told::Height).boxed()),
            (
                1,
                (0..200_u64)
                    .prop_map(|to| Told::Height(HeightReport::Reached(to)))
                    .boxed(),
            ),
            (
                3,
                (0..200_u64)
                    .prop_map(|to| Told::Height(HeightReport::Reorganised(to)))
                    .boxed(),
            ),
        ];
        if state.versions.len() > 1 {
            told.push((2, any::<usize>().prop_map(Told::Again).boxed()));
            told.push((1, any::<usize>().prop_map(Told::Rival).boxed()));
        }
        let fate = prop_oneof![
            4 => Just(Fate::Well),
            1 => Just(Fate::Restart),
            1 => failure().prop_map(Fate::DiskFails),
            1 => failure().prop_map(Fate::Dies),
        ];
        (Union::new_weighted(told), fate)
            .prop_map(|(told, fate)| Step { told, fate })
            .boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        state.answer = state.judge(&step.told);
        state
    }
}

/// The store, and governance to approve updates.
struct World {
    runtime: tokio::runtime::Runtime,
    simulator: Simulator,
    disk: Disk,
    store: Option<ChainStore>,
    /// Each accepted update, and another one that was approved in its place.
    accepted: Vec<(FederationUpdate, FederationUpdate)>,
}

impl World {
    fn open(&self) -> ChainStore {
        let first = self.simulator.federation(1).expect("the first");
        let chain = self.disk.chain(schedule(&first, "alys-regtest"));
        let chain = self.runtime.block_on(chain);
        chain.expect("holds what was committed")
    }

    fn store(&self) -> &ChainStore {
        self.store.as_ref().expect("open")
    }

    fn update(&self, told: &Told) -> Option<FederationUpdate> {
        let chosen = |number: usize| &self.accepted[number % self.accepted.len()];
        let next = |plan: Plan| update(&self.simulator, &plan.into());
        Some(match *told {
            Told::Next(plan, _) => next(plan),
            Told::Again(number) => chosen(number).0.clone(),
            Told::Rival(number) => chosen(number).1.clone(),
            Told::Gap(plan) => {
                let next = next(plan);
                FederationUpdate {
                    version: next.version + 1,
                    previous_version: next.version,
                    ..next
                }
            }
            Told::Forged(plan) => {
                let mut next = next(plan);
                next.approvals.truncate(1);
                next
            }
            Told::Height(_) => return None,
        })
    }

    /// Tells the store; `None` when its disk has failed.
    fn tell(&self, told: &Told) -> Option<Result<(), &'static str>> {
        if let Told::Height(report) = told {
            return match self.runtime.block_on(self.store().report_height(*report)) {
                Ok(()) => Some(Ok(())),
                Err(HeightError::Lower { .. }) => Some(Err("lower")),
                Err(HeightError::Store(_)) => None,
            };
        }
        let update = self.update(told).expect("an update");
        let since = match told {
            Told::Next(_, ago) => self.store().height().saturating_sub(*ago),
            _ => 0,
        };
        let followed = self.runtime.block_on(self.store().follow(update, since));
        followed.ok().map(|followed| {
            followed
                .map(|_: Scheduling| ())
                .map_err(|fault| fault.name())
        })
    }

    fn federations(&self) -> Vec<(u32, FederationStanding, u64, bool)> {
        self.store()
            .federations()
            .iter()
            .map(|(federation, standing)| {
                let (version, paused) = (federation.version(), federation.is_paused());
                (version, *standing, federation.activation_height(), paused)
            })
            .collect()
    }

    /// Something else happens before what failed comes again. From then on, what is durable and
    /// what is in force are one, whatever the disk has made of the failure.
    fn move_on(&self) {
        self.runtime.block_on(until_open(self.store()));
        let height = self.store().height();
        for height in [height + 1, height] {
            let report = self
                .store()
                .report_height(HeightReport::Reorganised(height));
            self.runtime.block_on(report).expect("the disk is well");
        }
        let first = self.simulator.federation(1).expect("the first");
        let copy = self.disk.copy();
        let copy = copy.chain(schedule(&first, "alys-regtest"));
        let copy = self.runtime.block_on(copy).expect("opens");
        assert_eq!(copy.federations(), self.store().federations());
        assert_eq!(copy.events_after(0), self.store().events_after(0));
    }

    fn begin_again(&mut self) {
        self.store = None;
        self.store = Some(self.open());
    }
}

struct Agrees;

impl StateMachineTest for Agrees {
    type SystemUnderTest = World;
    type Reference = Reference;

    fn init_test(_: &Reference) -> World {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("starts");
        let simulator = runtime.block_on(governance());
        let mut world = World {
            runtime,
            simulator,
            disk: Disk::new(),
            store: None,
            accepted: Vec::new(),
        };
        world.begin_again();
        world
    }

    fn apply(mut world: World, reference: &Reference, step: Step) -> World {
        let before = (world.federations(), world.store().height());
        match step.fate {
            Fate::Well | Fate::Restart => {}
            Fate::DiskFails(failure) | Fate::Dies(failure) => world.disk.fail_next(failure),
        }
        let mut answer = world.tell(&step.told);
        if answer.is_none() {
            let now = (world.federations(), world.store().height());
            assert_eq!(now, before, "what is not durable is not in force");
        }
        match step.fate {
            Fate::Well => {}
            Fate::Restart => world.begin_again(),
            Fate::DiskFails(_) => {
                world.disk.is_well();
                world.move_on();
            }
            Fate::Dies(_) => {
                world.disk.is_well();
                world.begin_again();
            }
        }
        if answer.is_none() {
            // Nobody was told that it is done, so it comes again.
            answer = world.tell(&step.told);
        }
        assert_eq!(answer, Some(reference.answer), "{step:?}");
        if let (Told::Next(plan, _), Ok(())) = (&step.told, reference.answer) {
            let rival = Plan {
                grace: plan.grace + 1,
                ..*plan
            };
            let rival = update(&world.simulator, &rival.into());
            let accepted = world.update(&step.told).expect("an update");
            world.accepted.push((accepted, rival));
            let rotated = world.simulator.rotate_federation(&(*plan).into());
            rotated.expect("possible");
        }
        world
    }

    fn check_invariants(world: &World, reference: &Reference) {
        assert_eq!(world.store().height(), reference.height);
        let expected: Vec<_> = reference
            .versions
            .iter()
            .enumerate()
            .map(|(index, version)| {
                let standing = reference.standing(index);
                (
                    index as u32 + 1,
                    standing,
                    version.activation,
                    version.paused,
                )
            })
            .collect();
        assert_eq!(world.federations(), expected);
        let active = reference.active() as u32 + 1;
        assert_eq!(world.store().active().version(), active);
        // Whoever follows the events alone comes to the same.
        let (mut told, mut scheduled) = (1, 1);
        for (index, numbered) in world.store().events_after(0).iter().enumerate() {
            assert_eq!(numbered.number, index as u64 + 1);
            match &numbered.event {
                FederationEvent::Scheduled { version, .. } => {
                    scheduled += 1;
                    assert_eq!(*version, scheduled);
                }
                FederationEvent::Updated {
                    old_version: before,
                    new_version: after,
                    ..
                }
                | FederationEvent::Undone {
                    undone_version: before,
                    active_version: after,
                    ..
                } => {
                    assert_eq!(*before, told, "the version that signed until then");
                    told = *after;
                }
                FederationEvent::Retired { .. } | FederationEvent::Reinstated { .. } => {}
            }
        }
        assert_eq!(
            (told, scheduled as usize),
            (active, reference.versions.len())
        );
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_the_reference_signs(sequential 1..40 => Agrees);
}
