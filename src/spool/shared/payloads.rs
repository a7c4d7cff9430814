//! Payloads in pieces.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::PoisonError;

use sha2::{Digest, Sha256};
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Connection, Executor, Row};

use super::Shared;
use crate::durable::{self, DurableError};
use crate::spool::SpoolError;

/// Bytes of one piece.
const CHUNK: usize = 1 << 20;

/// Names the advisory lock under which partitions are made and dropped: "cdal" and a number.
const PARTITIONS: i64 = 0x6364_616c_0002;

/// Where a payload is read from.
pub(super) enum Content<'a> {
    File(&'a Path),
    Bytes(&'a [u8]),
}

impl Shared {
    /// The server's day, with a place for what comes today and tomorrow.
    pub(super) async fn day(&self, connection: &mut PgConnection) -> Result<String, SpoolError> {
        let day: String = sqlx::query("SELECT ((now() AT TIME ZONE 'UTC')::date)::text")
            .fetch_one(&mut *connection)
            .await?
            .try_get(0)?;
        let known = self.day.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.as_ref() == Some(&day) {
            return Ok(day);
        }
        let mut transaction = connection.begin().await?;
        lock_partitions(&mut transaction).await?;
        for ahead in 0..2 {
            let row = sqlx::query(
                "SELECT to_char($1::text::date + $2, 'YYYYMMDD'), ($1::text::date + $2)::text,
                        ($1::text::date + $2 + 1)::text",
            )
            .bind(&day)
            .bind(ahead)
            .fetch_one(&mut *transaction)
            .await?;
            let [name, from, to]: [String; 3] = [row.try_get(0)?, row.try_get(1)?, row.try_get(2)?];
            let make = format!(
                "CREATE TABLE IF NOT EXISTS chunks_{name} PARTITION OF chunks
                 FOR VALUES FROM ('{from}') TO ('{to}')"
            );
            // Of the server's own dates.
            transaction.execute(AssertSqlSafe(make)).await?;
        }
        transaction.commit().await?;
        *self.day.lock().unwrap_or_else(PoisonError::into_inner) = Some(day.clone());
        Ok(day)
    }

    /// Puts the payload into `folder` as `<sha256>.<extension>`.
    pub(super) async fn borrow(
        &self,
        pool: &PgPool,
        folder: &Path,
        (day, sha256, extension, bytes): (&str, &str, &str, u64),
    ) -> Result<std::path::PathBuf, SpoolError> {
        let name = format!("{sha256}.{extension}");
        let path = folder.join(&name);
        // What came in here lies here already. A link keeps it, even if it is removed from the spool meanwhile.
        if fs::hard_link(self.spool.directory.join("instances").join(&name), &path).is_ok() {
            return Ok(path);
        }
        let mut file = File::create(&path).map_err(DurableError::of("create", &path))?;
        let write = |piece: &[u8]| file.write_all(piece).map_err(DurableError::of("write", &path));
        withdraw(pool, (day, sha256, bytes), write).await?;
        Ok(path)
    }

    /// A payload as it was put in. One at a time is fetched.
    ///
    /// # Errors
    /// If the server refuses, or `Damaged` if it is not there as it was.
    pub fn payload(&self, day: &str, sha256: &str, bytes: u64) -> Result<Vec<u8>, SpoolError> {
        let _turn = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        self.run(bytes, async {
            let mut content = Vec::new();
            let add = |piece: &[u8]| {
                content.extend_from_slice(piece);
                Ok(())
            };
            withdraw(self.pool().await?, (day, sha256, bytes), add).await?;
            Ok(content)
        })
    }
}

/// Hands the pieces of a payload over, one after the other, and fails at the end if it is not what was put in.
async fn withdraw(
    pool: &PgPool,
    (day, sha256, bytes): (&str, &str, u64),
    mut take: impl FnMut(&[u8]) -> Result<(), DurableError>,
) -> Result<(), SpoolError> {
    let mut hash = Sha256::new();
    for seq in 0..pieces(bytes) {
        let row = sqlx::query(
            "SELECT data FROM chunks WHERE day = $1::text::date AND sha256 = $2 AND seq = $3",
        )
        .bind(day)
        .bind(sha256)
        .bind(seq)
        .fetch_optional(pool)
        .await?;
        let damaged = || SpoolError::Damaged { sha256: sha256.to_owned() };
        let data: &[u8] = row.as_ref().ok_or_else(damaged)?.try_get(0)?;
        hash.update(data);
        take(data)?;
    }
    if durable::hex(&hash.finalize()) != sha256 {
        return Err(SpoolError::Damaged { sha256: sha256.to_owned() });
    }
    Ok(())
}

/// Puts a payload in, if that day has not got it yet.
pub(super) async fn deposit(
    transaction: &mut PgConnection,
    (day, sha256): (&str, &str),
    content: Content<'_>,
) -> Result<(), SpoolError> {
    // A payload's pieces are committed together.
    let is_there =
        sqlx::query("SELECT 1 FROM chunks WHERE day = $1::text::date AND sha256 = $2 AND seq = 0")
            .bind(day)
            .bind(sha256)
            .fetch_optional(&mut *transaction)
            .await?;
    if is_there.is_some() {
        return Ok(());
    }
    let (mut file, mut rest): (Box<dyn Read + Send>, _);
    let (read, path): (&mut (dyn Read + Send), &Path) = match content {
        Content::File(path) => {
            file = Box::new(File::open(path).map_err(DurableError::of("open", path))?);
            (&mut *file, path)
        }
        Content::Bytes(bytes) => {
            rest = bytes;
            (&mut rest, Path::new("a result"))
        }
    };
    let mut hash = Sha256::new();
    let mut seq = 0_i32;
    loop {
        let mut piece = Vec::with_capacity(CHUNK.min(1 << 16));
        (&mut *read)
            .take(CHUNK as u64)
            .read_to_end(&mut piece)
            .map_err(DurableError::of("read", path))?;
        if piece.is_empty() && seq > 0 {
            break;
        }
        hash.update(&piece);
        let is_last = piece.len() < CHUNK;
        // Another device may be putting the same in: this waits for it.
        sqlx::query(
            "INSERT INTO chunks (day, sha256, seq, data) VALUES ($1::text::date, $2, $3, $4)
             ON CONFLICT DO NOTHING",
        )
        .bind(day)
        .bind(sha256)
        .bind(seq)
        .bind(piece)
        .execute(&mut *transaction)
        .await?;
        seq += 1;
        if is_last {
            break;
        }
    }
    if durable::hex(&hash.finalize()) != sha256 {
        return Err(SpoolError::Damaged { sha256: sha256.to_owned() });
    }
    Ok(())
}

/// How many pieces `bytes` make; nothing is one piece of nothing.
fn pieces(bytes: u64) -> i32 {
    bytes.div_ceil(CHUNK as u64).max(1) as i32
}

pub(super) async fn lock_partitions(connection: &mut PgConnection) -> Result<(), SpoolError> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(PARTITIONS).execute(connection).await?;
    Ok(())
}
