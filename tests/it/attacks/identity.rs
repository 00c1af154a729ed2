//! Attacks on passwords.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use futures_util::future::join_all;
use serde_json::json;
use tokio::net::TcpSocket;

use super::{CLOSED, check, memory_kib, say, start};
use crate::process::Process;
use crate::raw::{Connect, Raw, v3};

const PASSWORD: &str = "long enough";

async fn add(process: &Process, user: &str) {
    let body = json!({ "user": user, "password": PASSWORD });
    assert_eq!(process.api.post("/v1/devices", &body).await.0, 201);
}

fn login<'a>(user: &'a str, password: &'a str) -> Connect<'a> {
    Connect { user: Some((user, password)), ..v3(user) }
}

/// A CONNACK's code, for a client of this address.
async fn code(process: &Process, from: u8, connect: &Connect<'_>) -> u8 {
    let socket = TcpSocket::new_v4().unwrap();
    let own = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, from)), 0);
    socket.bind(own).unwrap();
    let mut raw = Raw::over(socket.connect(process.mqtt()).await.unwrap());
    raw.send(&connect.bytes()).await;
    let connack = raw.packet().await.expect("a CONNACK");
    raw.hang_up().await;
    connack[3]
}

#[tokio::test]
async fn passwords_guessed_by_the_thousand_harm_nobody() {
    let more = "limits_exempt = []\nfailed_logins_ban = '10m'\nflapping_connects_max = 0\n";
    let process = start(more).await;
    for user in ["guessed", "neighbour"] {
        add(&process, user).await;
    }
    assert_eq!(code(&process, 1, &login("guessed", PASSWORD)).await, 0);
    // Unheard, but for the ten that say how often it was.
    let count = (CLOSED, &["rate_limited", "bad_credentials"][..], 1000);
    check(&process, "passwords guessed by the thousand", count, async |address| {
        for hundred in 0..10 {
            for number in 0..100 {
                let guess = format!("guess {hundred} {number}");
                say(address, &login("guessed", &guess).bytes()).await;
            }
            // From the same address another user gets in, and from another address the right one.
            assert_eq!(code(&process, 1, &login("neighbour", PASSWORD)).await, 0);
            assert_eq!(code(&process, 2, &login("guessed", PASSWORD)).await, 0);
        }
    })
    .await;
    let wrong = "connections_closed_total{reason=\"bad_credentials\"}";
    assert_eq!(process.api.metric(wrong).await, 10, "of all rounds together");
}

/// Argon2's memory was freed after each check and stayed with the allocator, once for each thread
/// that had ever checked one: 500 MiB here.
#[tokio::test]
async fn passwords_of_forty_users_at_a_time_take_the_memory_of_two() {
    let process = start("password_checks_max = 2\n").await;
    for number in 0..40 {
        add(&process, &format!("user-{number}")).await;
    }
    let before = memory_kib(&process, "VmRSS");
    let count = (CLOSED, &["bad_credentials", "auth_unavailable"][..], 40);
    check(&process, "forty guesses at a time", count, async |address| {
        let guesses = (0..40).map(async |number| {
            let user = format!("user-{number}");
            say(address, &login(&user, "guess").bytes()).await;
        });
        join_all(guesses).await;
    })
    .await;
    // 19 MiB each, and one has been there since the passwords were hashed.
    let most = memory_kib(&process, "VmHWM");
    assert!(most < before + (48 << 10), "{most} KiB, {before} KiB before");
}
