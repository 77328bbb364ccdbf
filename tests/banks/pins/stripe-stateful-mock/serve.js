// Its own command listens on every interface of the machine.
const { createExpressApp } = require("stripe-stateful-mock");

createExpressApp().listen(Number(process.argv[2]), "127.0.0.1");
