// Its own command listens on every interface of the machine, and its replayed answers say that they are HTML.
const express = require("express");
const { createExpressApp } = require("stripe-stateful-mock");

const served = express();
served.use((_, response, next) => {
  response.type("json");
  next();
});
served.use(createExpressApp());
served.listen(Number(process.argv[2]), "127.0.0.1");
