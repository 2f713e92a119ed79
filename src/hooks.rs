//! Where tests may fault the tree. Without the feature `stress` an actor is spawned bare, and a
//! point is no code at all.

/// The actor, in a shell that faults when a test wants it to.
#[cfg(feature = "stress")]
macro_rules! faultable {
    ($actor:expr, $who:ident) => {
        $crate::stress::Faultable::new($actor, $crate::stress::Point::$who)
    };
}
#[cfg(not(feature = "stress"))]
macro_rules! faultable {
    ($actor:expr, $who:ident) => {
        $actor
    };
}

/// A point in a task of `$owner`, an actor. An `Error` there ends the task with `$error`; where
/// there is none to give, it is not a fault that the point can have.
#[cfg(feature = "stress")]
macro_rules! fault_point {
    ($owner:expr, $point:ident) => {
        let _ = $crate::stress::pass(&$owner.get_cell(), $crate::stress::Point::$point).await;
    };
    ($owner:expr, $point:ident, $error:expr) => {
        let passed = $crate::stress::pass(&$owner.get_cell(), $crate::stress::Point::$point).await;
        passed.map_err(|_| $error)?;
    };
}
#[cfg(not(feature = "stress"))]
macro_rules! fault_point {
    ($owner:expr, $point:ident $(, $error:expr)?) => {
        let _ = &$owner;
    };
}
