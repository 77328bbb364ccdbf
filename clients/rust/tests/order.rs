mod sandbox;

use chargeonce::{Card, ChargeRequest, ChargeStatus, Money, until_settled};
use sandbox::sandbox;

#[tokio::test]
async fn an_order_is_paid() {
    let commands = sandbox().settings.commands().unwrap();
    let request = ChargeRequest {
        idempotency_key: "order-1001".into(),
        user_id: "alice".into(),
        card: Some(Card { token: "tok_visa".into(), ..Card::default() }),
        amount: Some(Money { minor_units: 1250, currency_code: "EUR".into() }),
        ..ChargeRequest::default()
    };
    let answer = until_settled(&request, async |request| commands.clone().charge(request).await).await.unwrap();
    assert_eq!(answer.status(), ChargeStatus::Charged);
    assert_eq!(sandbox().movements(&answer.charge_id), [1250]);
}
