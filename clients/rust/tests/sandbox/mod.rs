//! The servers of the tests: one sandbox for the whole test program, with which it ends.

use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use chargeonce::Settings;
use serde_json::Value;

/// A mock bank and both servers, as `chargeonce sandbox` runs them.
pub struct Sandbox {
    pub settings: Settings,
    bank: String,
    _process: Child,
}

/// The sandbox, started by its first use.
pub fn sandbox() -> &'static Sandbox {
    static SANDBOX: LazyLock<Sandbox> = LazyLock::new(Sandbox::start);
    &SANDBOX
}

impl Sandbox {
    fn start() -> Self {
        // exec: no shell stands between the sandbox and this process, whose end it waits for.
        let mut process = Command::new("sh")
            .args(["-c", &format!("exec {}", command_line())])
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh is there");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).expect("text on standard output");
        let started: Value = serde_json::from_str(&line).expect("the sandbox says in JSON where it serves");
        let address = |name: &str| started[name].as_str().unwrap_or_else(|| panic!("no {name} in {line}")).to_owned();
        let settings = Settings { command: address("command"), query: address("query"), ..Settings::default() };
        Self { settings, bank: address("bank"), _process: process }
    }

    /// Orders a fault of the bank, in JSON: see `docs/mock-bank.md`.
    #[allow(dead_code)] // not every test program orders faults
    pub fn order(&self, fault: &str) {
        ureq::post(format!("{}/faults", self.bank)).send(fault).unwrap();
    }

    /// The movements of money for a charge in the bank's statement, in minor units.
    pub fn movements(&self, charge_id: &str) -> Vec<i64> {
        let statement = ureq::get(format!("{}/statement", self.bank)).call().unwrap().body_mut().read_to_string().unwrap();
        let statement: Value = serde_json::from_str(&statement).unwrap();
        let movements = statement["movements"].as_array().unwrap();
        let of_charge = movements.iter().filter(|movement| movement["reference"] == charge_id);
        of_charge.map(|movement| movement["minor_units"].as_i64().unwrap()).collect()
    }
}

/// `CHARGEONCE_SANDBOX`, or the one of this repository, or the one on PATH.
fn command_line() -> String {
    env::var("CHARGEONCE_SANDBOX").ok().filter(|given| !given.is_empty()).unwrap_or_else(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/chargeonce");
        let program = if here.exists() { here.to_str().unwrap() } else { "chargeonce" };
        format!("'{program}' sandbox")
    })
}
