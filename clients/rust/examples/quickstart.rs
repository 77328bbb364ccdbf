use chargeonce::{Card, ChargeRequest, Money, Settings, until_settled};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let commands = Settings { command: "127.0.0.1:50051".into(), ..Settings::default() }.commands()?;
    let card = Some(Card { token: "tok_visa".into(), ..Card::default() });
    let amount = Some(Money { minor_units: 1250, currency_code: "EUR".into() });
    let key = "quickstart-rust".into();
    let request = ChargeRequest { idempotency_key: key, user_id: "alice".into(), card, amount, ..Default::default() };
    let answer = until_settled(&request, async |request| commands.clone().charge(request).await).await?;
    println!("{} {}", answer.status().as_str_name(), answer.transaction_id);
    Ok(())
}
