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

        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.as_str().into())
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                match value.as_str()? {
                    $($word => Ok(Self::$state),)+
                    _ => Err(FromSqlError::InvalidType),
                }
            }
        }
    };
}

stored_as_word! {
    /// `accepted` takes part in its series' jobs; `quarantined` is kept aside for a person to look at.
    InstanceState { Accepted = "accepted", Quarantined = "quarantined" }
}

stored_as_word! {
    /// `received` → `ready` → `running` → `done` | `failed`; any state before `running` → `quarantined`.
    ///
    /// `running` goes back to `ready` after a transient failure or a crash, until its attempts are used up.
    JobState {
        /// Objects of the series are still expected.
        Received = "received",
        /// The series is complete; waits for the worker.
        Ready = "ready",
        Running = "running",
        /// The products and their deliveries are recorded.
        Done = "done",
        /// Gave no result and will not be tried again by itself.
        Failed = "failed",
        /// Contradictory input; a person must decide.
        Quarantined = "quarantined",
    }
}

stored_as_word! {
    /// `pending` → `sent` | `dead`.
    DeliveryState {
        /// To be sent at its next attempt time.
        Pending = "pending",
        /// The destination confirmed it.
        Sent = "sent",
        /// The destination refused it for good; kept for a person.
        Dead = "dead",
    }
}
