//! The Lua scripts. Each file opens with its contract. Where several are named, the last is the
//! script, and the others hold functions of it.
//!
//! A full server takes the scripts with `allow-oom`: those that end jobs, or bring them to their end. What
//! they add is bounded by the jobs that run and by what these jobs answer, and each job that ends frees its
//! entry. Without them a queue that has filled its server would never become shorter. What brings new jobs
//! stays refused.

use redis::Script;

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident: $([$flags:literal])? $($file:literal)+,)*) => {
        /// Every script, with its hash.
        #[derive(Debug)]
        pub struct Scripts {
            $($(#[$doc])* pub $name: Script,)*
        }

        impl Scripts {
            /// Hashes the scripts; each is loaded into the server when it is first missed there.
            pub fn new() -> Self {
                Self {
                    $($name: Script::new(
                        concat!($($flags,)? $(include_str!(concat!("lua/", $file))),+),
                    ),)*
                }
            }
        }
    };
}

scripts! {
    /// Announces a worker's lease.
    announce: ["#!lua flags=allow-oom\n"] "announce.lua",
    /// Opens a fence, for an attempt or a refusal.
    begin: ["#!lua flags=allow-oom\n"] "begin.lua",
    /// Ends an attempt.
    conclude: ["#!lua flags=allow-oom\n"] "conclude.lua",
    /// Rebuilds what the server forgot.
    heal: ["#!lua flags=allow-oom\n"] "heal.lua",
    /// Parks an entry's job.
    park: ["#!lua flags=allow-oom\n"] "load.lua" "next.lua" "park.lua",
    /// Parks a new job: the same script, which a full server refuses.
    schedule: "load.lua" "next.lua" "park.lua",
    /// Gives a record its whole time again.
    keep: "keep.lua",
    /// Moves due jobs to their lanes.
    promote: ["#!lua flags=allow-oom\n"] "load.lua" "next.lua" "promote.lua",
    /// Moves an entry to the dead letters.
    bury: ["#!lua flags=allow-oom\n"] "load.lua" "bury.lua",
    /// Drops dead letters beyond the most.
    drop: ["#!lua flags=allow-oom\n"] "drop.lua",
    /// Drops dead letters that are too old.
    expire: "expire.lua",
    /// Ends counted entries.
    remove: ["#!lua flags=allow-oom\n"] "load.lua" "remove.lua",
    /// Renews leases.
    renew: "renew.lua",
    /// Gives back a running attempt.
    release: ["#!lua flags=allow-oom\n"] "release.lua",
    /// Ends a lease.
    hand_back: "hand_back.lua",
    /// Removes what nobody needs from a lane.
    trim: "load.lua" "trim.lua",
    /// Reserves an ID for one request.
    reserve: "reserve.lua",
    /// Withdraws the reservation of a job that was refused.
    withdraw: "withdraw.lua",
    /// Writes the record of a reserved job that was added.
    accept: "accept.lua",
    /// Lets go of what was deleted under its worker.
    let_go: "let_go.lua",
    /// Takes what ran out of lease.
    take_over: "taking.lua" "take_over.lua",
    /// Begins leases anew after the clock was set back.
    anew: "anew.lua",
    /// Numbers what is read again.
    retake: ["#!lua flags=allow-oom\n"] "taking.lua" "retake.lua",
    /// Lets a record go in its time.
    let_expire: "let_expire.lua",
    /// Forgets workers.
    retire: "retire.lua",
    /// Cancels a job.
    cancel: "cancel.lua",
    /// Removes a parked job.
    unpark: ["#!lua flags=allow-oom\n"] "load.lua" "unpark.lua",
    /// Opens a new run.
    reopen: "reopen.lua",
    /// Puts a dead letter's entry back.
    requeue: "requeue.lua",
    /// Adds jobs within the limits.
    admit: "next.lua" "admit.lua",
    /// Sets counters right.
    reconcile: "load.lua" "reconcile.lua",
    /// Reads a job for a tenant.
    owned: "owned.lua",
    /// Reads a page of a tenant's recent jobs.
    recent: "recent.lua",
    /// Takes tokens from a tenant's bucket.
    rate: "rate.lua",
}
