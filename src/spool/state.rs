//! The states of instances, jobs and deliveries, and the words they are stored under.

use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};

macro_rules! stored_as_word {
    ($(#[$meta:meta])* $name:ident { $($(#[$state_meta:meta])* $state:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$state_meta])* $state),+ }

        impl $name {
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$state => $word),+ }
            }
        }

        impl $name {
            /// `None` if no state is stored under `word`.
            #[must_use]
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$state),)+ _ => None }
            }
        }

        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.as_str().into())
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                Self::parse(value.as_str()?).ok_or(FromSqlError::InvalidType)
            }
        }
    };
}

stored_as_word! {
    /// `accepted` takes part in its series' jobs; `quarantined` is kept aside for a person to look at.
    InstanceState { Accepted = "accepted", Quarantined = "quarantined" }
}

stored_as_word! {
    /// Where a job stands; [`JobState::next`] is the whole machine.
    JobState {
        /// Objects of the series are still expected.
        Received = "received",
        /// The series is complete; waits for the worker.
        Ready = "ready",
        Running = "running",
        /// The products and their deliveries are recorded.
        Done = "done",
        /// Bad input, a model that refuses it, or attempts used up: a person decides.
        Failed = "failed",
        /// Contradictory input: a person decides.
        Quarantined = "quarantined",
        /// Gave no result, and a later revision of its series covers it.
        Superseded = "superseded",
        /// A person gave it up.
        Dropped = "dropped",
        /// Is on the queue that devices share, with all its objects: what becomes of it is known there.
        Shared = "shared",
    }
}

impl JobState {
    /// Whether nothing will happen to it by itself, and something should.
    #[must_use]
    pub fn waits_for_a_person(self) -> bool {
        matches!(self, Self::Failed | Self::Quarantined)
    }

    /// The states that may follow.
    #[must_use]
    pub fn next(self) -> &'static [Self] {
        use JobState::{
            Done, Dropped, Failed, Quarantined, Ready, Received, Running, Shared, Superseded,
        };
        match self {
            Received => &[Ready, Quarantined],
            Ready => &[Running, Quarantined, Shared],
            // Back to ready after a transient failure or a crash, until its attempts are used up.
            Running => &[Ready, Done, Failed, Superseded],
            Failed => &[Ready, Superseded, Dropped],
            Quarantined => &[Ready, Dropped],
            Done | Superseded | Dropped | Shared => &[],
        }
    }
}

stored_as_word! {
    /// Where a delivery stands; [`DeliveryState::next`] is the whole machine.
    DeliveryState {
        /// To be sent at its next attempt time.
        Pending = "pending",
        /// The destination confirmed it.
        Sent = "sent",
        /// Refused for good, or pending for too long: a person decides.
        Dead = "dead",
        /// A person gave it up.
        Dropped = "dropped",
    }
}

stored_as_word! {
    /// Where a sender's request for storage commitment stands. The same request again makes it pending again.
    CommitmentState {
        /// The sender has not acknowledged a report yet.
        Pending = "pending",
        Reported = "reported",
        /// The sender could not be reached for too long.
        GivenUp = "given_up",
    }
}

impl DeliveryState {
    /// The states that may follow.
    #[must_use]
    pub fn next(self) -> &'static [Self] {
        use DeliveryState::{Dead, Dropped, Pending, Sent};
        match self {
            Pending => &[Sent, Dead, Dropped],
            Dead => &[Pending, Dropped],
            Sent | Dropped => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_stays_so_and_only_a_person_brings_back_what_failed() {
        for settled in [JobState::Done, JobState::Superseded, JobState::Dropped, JobState::Shared] {
            assert!(settled.next().is_empty());
        }
        for settled in [DeliveryState::Sent, DeliveryState::Dropped] {
            assert!(settled.next().is_empty());
        }
        assert!(!JobState::Received.next().contains(&JobState::Done), "nothing is done unrun");
        assert!(JobState::Failed.next().contains(&JobState::Ready));
        assert!(DeliveryState::Dead.next().contains(&DeliveryState::Pending));
    }
}
