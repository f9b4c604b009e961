// Errors of the server, by their code and the reason in their ErrorInfo.

import grpc from "@grpc/grpc-js";
import protobuf from "protobufjs";

const DOMAIN = "staddle";
const DETAILS = "grpc-status-details-bin";
const INFO = "type.googleapis.com/google.rpc.ErrorInfo";

const types = protobuf.loadSync(new URL("./error_details.proto", import.meta.url).pathname);
const Status = types.lookupType("google.rpc.Status");
const ErrorInfo = types.lookupType("google.rpc.ErrorInfo");

function reasonOf(error) {
  for (const bytes of error.metadata.get(DETAILS)) {
    for (const detail of Status.decode(bytes).details) {
      if (detail.type_url !== INFO) continue;
      const info = ErrorInfo.decode(detail.value);
      if (info.domain === DOMAIN) return info.reason;
    }
  }
  return "without a reason";
}

/** An error in one line. Other errors are shown by their message. */
export function describe(error) {
  if (!(error.metadata instanceof grpc.Metadata)) return error.message;
  return `${grpc.status[error.code]} ${reasonOf(error)}: ${error.details}`;
}
