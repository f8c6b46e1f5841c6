//! `enisle net why`.

use crate::table::{print, print_json};
use crate::vm::Context;
use crate::{ExitCode, Failure};
use clap::Args;
use enisle_client::api::{RuleShown, Why};

#[derive(Debug, Args)]
#[command(after_help = "\
Asks the kernel's own maps, and compares with the policy as written. DEST without a port is about
ping, with a port and no protocol about TCP. Ends with 0 whatever the verdict, and with 1 when the
kernel holds something else than the policy.

Examples:
  enisle net why agents-1 8.8.8.8
  enisle net why agents-1 192.168.1.10:5432
  enisle net why agents-1 8.8.8.8:53/udp --json | jq -r .verdict")]
pub(crate) struct WhyArgs {
    /// The VM.
    vm: String,
    /// The destination: address[:port][/tcp, /udp or /icmp].
    dest: String,
}

pub(super) async fn run(context: &Context, args: &WhyArgs) -> Result<u8, Failure> {
    let why = context.client.why(&args.vm, &args.dest).await?;
    if context.json {
        print_json(&why)?;
    } else {
        print(&text(&why))?;
    }
    Ok(if why.mismatch.is_some() { ExitCode::Failed as u8 } else { 0 })
}

fn text(why: &Why) -> String {
    let port = why.port.map(|port| format!(":{port}")).unwrap_or_default();
    let mut text =
        format!("{} {} to {}{port}/{}: {}\n", why.verdict, why.vm, why.destination, why.protocol, why.reason);
    let shown = |rule: &RuleShown| format!("{} {}", rule.origin, rule.rule);
    if let (Some(rule), Some(number)) = (&why.rule, why.kernel_rule) {
        text.push_str(&format!("policy: {} (rule {number} in the kernel's map)\n", shown(rule)));
    }
    for rule in &why.beaten {
        text.push_str(&format!("  beats {}\n", shown(rule)));
    }
    if let Some(mismatch) = &why.mismatch {
        text.push_str(&format!("MISMATCH: {mismatch}\n"));
    }
    crate::table::visible_lines(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_client::api::PolicyVerdict;

    #[test]
    fn the_winner_the_beaten_and_a_mismatch_are_said() {
        let rule = |origin: &str, rule: &str| RuleShown { origin: origin.into(), rule: rule.into() };
        let why = Why {
            vm: "agents-1".into(),
            destination: [8, 8, 8, 8].into(),
            port: Some(53),
            protocol: "udp".into(),
            verdict: PolicyVerdict::Refuse,
            decided_by: "policy".into(),
            reason: "group drop[0] 8.8.8.8".into(),
            rule: Some(rule("group drop[0]", "8.8.8.8")),
            kernel_rule: Some(21),
            beaten: vec![rule("default", "public Internet")],
            mismatch: Some("the kernel says refuse".into()),
        };
        let expected = "refuse agents-1 to 8.8.8.8:53/udp: group drop[0] 8.8.8.8\n\
            policy: group drop[0] 8.8.8.8 (rule 21 in the kernel's map)\n  beats default public Internet\n\
            MISMATCH: the kernel says refuse\n";
        assert_eq!(text(&why), expected);
    }
}
