use std::time::Duration;

use super::{
    Claim, Count, Delivery, DestinationReport, Inquiry, Next, Product, Retry, Spool, SpoolError,
    Statement, Tidied, Verdict,
};
use crate::domain::{SopReference, Uid};

/// Where jobs and deliveries are taken from and given back: this device's spool, or the queue that several devices
/// share. Both behave the same: `tests/it/queue.rs` holds them to it. Every call may block.
///
/// Whoever took something may lose it again, to another device or to the next start of the process. What is then said
/// about it is refused and changes nothing: [`SpoolError::is_overtaken`].
pub trait Queue: Send + Sync + 'static {
    /// Takes the oldest job that is ready and can be computed here.
    ///
    /// # Errors
    /// If the queue refuses.
    fn claim(&self) -> Result<Option<Claim>, SpoolError>;

    /// In how long it is worth asking again, if nobody says that there is something.
    ///
    /// # Errors
    /// If the queue refuses.
    fn next_claim(&self) -> Result<Option<Duration>, SpoolError>;

    /// Ends a claimed job with its products, each to be sent to every one of `destinations`.
    ///
    /// # Errors
    /// If the queue refuses; the job is then still claimed, unless it was overtaken.
    fn finish(
        &self,
        claim: &Claim,
        products: &[Product],
        destinations: &[String],
        compute: Duration,
    ) -> Result<(), SpoolError>;

    /// Ends a claimed job that will never give a result.
    ///
    /// # Errors
    /// If the queue refuses.
    fn fail(&self, claim: &Claim, reason: &str) -> Result<(), SpoolError>;

    /// Puts a claimed job back after a transient failure, to be claimed again after `delay`.
    ///
    /// # Errors
    /// If the queue refuses.
    fn retry(&self, claim: &Claim, reason: &str, delay: Duration) -> Result<Retry, SpoolError>;

    /// Takes the oldest pending delivery to `destination`, when it is due; those behind it wait for it.
    ///
    /// # Errors
    /// If the queue refuses.
    fn next_delivery(&self, destination: &str) -> Result<Next<Delivery>, SpoolError>;

    /// What waits for its next attempt at `destination` is due now.
    ///
    /// # Errors
    /// If the queue refuses.
    fn hurry(&self, destination: &str) -> Result<(), SpoolError>;

    /// The destination confirmed it. Returns its job's figures if that is complete.
    ///
    /// # Errors
    /// If the queue refuses; it is then sent once more.
    fn sent(&self, delivery: &Delivery) -> Result<Option<super::Account>, SpoolError>;

    /// The destination refused it for good.
    ///
    /// # Errors
    /// If the queue refuses.
    fn bury(&self, delivery: &Delivery, reason: &str)
    -> Result<Option<super::Account>, SpoolError>;

    /// Try again after `delay`.
    ///
    /// # Errors
    /// If the queue refuses.
    fn postpone(
        &self,
        delivery: &Delivery,
        reason: &str,
        delay: Duration,
    ) -> Result<(), SpoolError>;

    /// Makes dead letters of what has been pending to `destination` for longer than `age`. Returns how many.
    ///
    /// # Errors
    /// If the queue refuses.
    fn bury_older(&self, destination: &str, age: Duration) -> Result<u64, SpoolError>;

    /// # Errors
    /// If the queue refuses.
    fn count(&self) -> Result<Count, SpoolError>;

    /// What each destination got since the queue was made, and what is on the way to it.
    ///
    /// # Errors
    /// If the queue refuses.
    fn statements(&self) -> Result<Vec<Statement>, SpoolError>;

    /// Every destination that ever got a delivery, by name.
    ///
    /// # Errors
    /// If the queue refuses.
    fn destinations(&self) -> Result<Vec<DestinationReport>, SpoolError>;

    /// Removes finished work that has reached its age. Nothing else is ever removed.
    ///
    /// # Errors
    /// If the queue refuses.
    fn tidy(&self) -> Result<Tidied, SpoolError>;

    /// The destination took it and will be asked to commit to it.
    ///
    /// # Errors
    /// If the queue refuses.
    fn taken(&self, delivery: &Delivery) -> Result<(), SpoolError> {
        Err(SpoolError::Shared {
            problem: format!("delivery {} waits for no commitment here", delivery.id),
            is_outage: false,
        })
    }

    /// What `destination` is to be asked about, if there is anything.
    ///
    /// # Errors
    /// If the queue refuses.
    fn inquire(&self, _: &str, _: Duration) -> Result<Option<Inquiry>, SpoolError> {
        Ok(None)
    }

    /// A destination reports on what it was asked about. Returns of how many deliveries this was news.
    ///
    /// # Errors
    /// If the queue refuses.
    fn report_custody(
        &self,
        _transaction: &Uid,
        _safe: &[SopReference],
        _failed: &[(SopReference, u16)],
    ) -> Result<usize, SpoolError> {
        Ok(0)
    }

    /// What has been decided about what `destination` took, in order.
    ///
    /// # Errors
    /// If the queue refuses.
    fn verdicts(&self, _destination: &str) -> Result<Vec<(Delivery, Verdict)>, SpoolError> {
        Ok(Vec::new())
    }

    /// In how long the next of what `destination` was asked about is to be sent again.
    ///
    /// # Errors
    /// If the queue refuses.
    fn next_silence(&self, _destination: &str) -> Result<Option<Duration>, SpoolError> {
        Ok(None)
    }
}

/// The embedded one. It has one owner, so that only what that owner itself has claimed anew can be overtaken.
impl Queue for Spool {
    fn claim(&self) -> Result<Option<Claim>, SpoolError> {
        self.claim()
    }

    fn next_claim(&self) -> Result<Option<Duration>, SpoolError> {
        self.next_claim()
    }

    fn finish(
        &self,
        claim: &Claim,
        products: &[Product],
        destinations: &[String],
        compute: Duration,
    ) -> Result<(), SpoolError> {
        self.holds(claim)?;
        self.finish(&claim.job, products, destinations, compute)
    }

    fn fail(&self, claim: &Claim, reason: &str) -> Result<(), SpoolError> {
        self.holds(claim)?;
        self.fail(&claim.job, reason)
    }

    fn retry(&self, claim: &Claim, reason: &str, delay: Duration) -> Result<Retry, SpoolError> {
        self.holds(claim)?;
        self.retry(&claim.job, reason, delay)
    }

    fn next_delivery(&self, destination: &str) -> Result<Next<Delivery>, SpoolError> {
        self.next_delivery(destination)
    }

    fn hurry(&self, destination: &str) -> Result<(), SpoolError> {
        self.hurry(destination)
    }

    fn sent(&self, delivery: &Delivery) -> Result<Option<super::Account>, SpoolError> {
        self.sent(delivery)
    }

    fn bury(
        &self,
        delivery: &Delivery,
        reason: &str,
    ) -> Result<Option<super::Account>, SpoolError> {
        self.bury(delivery, reason)
    }

    fn postpone(
        &self,
        delivery: &Delivery,
        reason: &str,
        delay: Duration,
    ) -> Result<(), SpoolError> {
        self.postpone(delivery, reason, delay)
    }

    fn bury_older(&self, destination: &str, age: Duration) -> Result<u64, SpoolError> {
        self.bury_older(destination, age)
    }

    fn count(&self) -> Result<Count, SpoolError> {
        self.count()
    }

    fn statements(&self) -> Result<Vec<Statement>, SpoolError> {
        self.statements()
    }

    fn destinations(&self) -> Result<Vec<DestinationReport>, SpoolError> {
        self.destinations()
    }

    fn tidy(&self) -> Result<Tidied, SpoolError> {
        self.tidy()
    }

    fn taken(&self, delivery: &Delivery) -> Result<(), SpoolError> {
        self.taken(delivery)
    }

    fn inquire(
        &self,
        destination: &str,
        patience: Duration,
    ) -> Result<Option<Inquiry>, SpoolError> {
        self.inquire(destination, patience)
    }

    fn report_custody(
        &self,
        transaction: &Uid,
        safe: &[SopReference],
        failed: &[(SopReference, u16)],
    ) -> Result<usize, SpoolError> {
        self.report_custody(transaction, safe, failed)
    }

    fn verdicts(&self, destination: &str) -> Result<Vec<(Delivery, Verdict)>, SpoolError> {
        self.verdicts(destination)
    }

    fn next_silence(&self, destination: &str) -> Result<Option<Duration>, SpoolError> {
        self.next_silence(destination)
    }
}
