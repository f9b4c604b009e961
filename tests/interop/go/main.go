// Command interop is a small Staddle client, made from the protos alone: what another service would write.
//
//	interop backup DIR DATASET
//	interop list DATASET
//	interop restore DATASET DIR
//
// STADDLE_SERVER is HOST:PORT and STADDLE_TOKEN a token. Results are JSON lines on standard output. It exits with 1
// after a failure, which it tells as "CODE REASON: message", with 2 for wrong usage, and with 3 if a path was damaged.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	staddle "staddle.dev/interop/gen/staddle/v1"
)

const (
	usage       = "usage: interop backup DIR DATASET | list DATASET | restore DATASET DIR"
	errorDomain = "staddle"
)

// errDamaged: the restore ended as it should, without some of the paths.
var errDamaged = errors.New("some paths are damaged")

// bearer puts the token into every call.
type bearer string

func (token bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(token)}, nil
}

// RequireTransportSecurity: this client speaks to loopback only.
func (token bearer) RequireTransportSecurity() bool { return false }

func main() {
	arguments := os.Args[1:]
	wanted := map[string]int{"backup": 3, "list": 2, "restore": 3}
	if len(arguments) == 0 || wanted[arguments[0]] != len(arguments) {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	err := run(arguments)
	if err != nil {
		fmt.Fprintln(os.Stderr, describe(err))
	}
	switch {
	case errors.Is(err, errDamaged):
		os.Exit(3)
	case err != nil:
		os.Exit(1)
	}
}

func run(arguments []string) error {
	connection, err := grpc.NewClient(
		os.Getenv("STADDLE_SERVER"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithPerRPCCredentials(bearer(os.Getenv("STADDLE_TOKEN"))),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	client := staddle.NewStaddleServiceClient(connection)
	ctx := context.Background()
	switch arguments[0] {
	case "backup":
		return backup(ctx, client, arguments[1], arguments[2])
	case "list":
		return list(ctx, client, arguments[1])
	default:
		return restore(ctx, client, arguments[1], arguments[2])
	}
}

// describe tells an error of the server by its code and the reason in its ErrorInfo.
func describe(err error) string {
	answer, ok := status.FromError(err)
	if !ok {
		return "interop: " + err.Error()
	}
	reason := "without a reason"
	for _, detail := range answer.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
			reason = info.GetReason()
		}
	}
	return fmt.Sprintf("interop: %s %s: %s", code.Code(answer.Code()), reason, answer.Message())
}

// printLine writes one JSON line to standard output.
func printLine(fields map[string]any) error {
	return json.NewEncoder(os.Stdout).Encode(fields)
}
