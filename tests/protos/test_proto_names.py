"""Names in the protos compile in all languages that clients are generated for; a breaking one is refused."""

from __future__ import annotations

import keyword
from collections.abc import Iterator

import pytest
from google.protobuf import descriptor_pb2 as dpb
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from staddle.v1 import errors_pb2, resources_pb2, service_pb2

FILES = (errors_pb2.DESCRIPTOR, resources_pb2.DESCRIPTOR, service_pb2.DESCRIPTOR)

# Fields and oneofs become attributes, properties and named arguments. These are keywords of languages whose generators, or
# whose callers, cannot write them as such: Python has no escape at all, the others make up another name or need quotes.
# Left out is what this contract uses and every generator handles (begin, end, data, type, by, at, hold).
FIELD_KEYWORDS = frozenset(keyword.kwlist) | frozenset(
    [
        "abstract",
        "assert",
        "as",
        "associatedtype",
        "base",
        "bool",
        "boolean",
        "break",
        "byte",
        "case",
        "catch",
        "char",
        "checked",
        "class",
        "companion",
        "const",
        "continue",
        "crate",
        "decimal",
        "default",
        "defer",
        "deinit",
        "delegate",
        "delete",
        "deprecated",
        "do",
        "double",
        "dyn",
        "else",
        "elsif",
        "enum",
        "ensure",
        "event",
        "explicit",
        "export",
        "extends",
        "extension",
        "extern",
        "fallthrough",
        "false",
        "final",
        "finally",
        "fixed",
        "float",
        "fn",
        "for",
        "foreach",
        "friend",
        "func",
        "function",
        "global",
        "goto",
        "guard",
        "id",
        "if",
        "impl",
        "implements",
        "implicit",
        "import",
        "in",
        "init",
        "inline",
        "inout",
        "instanceof",
        "int",
        "interface",
        "internal",
        "is",
        "let",
        "lock",
        "long",
        "loop",
        "match",
        "mod",
        "module",
        "move",
        "mut",
        "namespace",
        "native",
        "new",
        "nil",
        "null",
        "object",
        "operator",
        "out",
        "override",
        "package",
        "params",
        "private",
        "protected",
        "protocol",
        "public",
        "range",
        "readonly",
        "ref",
        "register",
        "repeat",
        "required",
        "rescue",
        "return",
        "sbyte",
        "sealed",
        "self",
        "short",
        "signed",
        "sizeof",
        "stackalloc",
        "static",
        "string",
        "strictfp",
        "struct",
        "subscript",
        "super",
        "switch",
        "synchronized",
        "template",
        "this",
        "throw",
        "throws",
        "trait",
        "transient",
        "true",
        "try",
        "typealias",
        "typedef",
        "typeof",
        "uint",
        "ulong",
        "unchecked",
        "unless",
        "unsafe",
        "unsigned",
        "until",
        "use",
        "ushort",
        "using",
        "val",
        "var",
        "virtual",
        "void",
        "volatile",
        "when",
        "where",
        "while",
        "with",
        "yield",
    ]
)
# An id of its own message reads as one everywhere, and Objective-C's generator renames it.
FIELD_KEYWORDS -= {"id", "until"}
# What every message of some language has as a method or property already.
FIELD_MEMBERS = frozenset(
    [
        "all_fields",
        "build",
        "builder_for_type",
        "byte_size",
        "cached_size",
        "class",
        "clone",
        "copy",
        "default_instance_for_type",
        "descriptor",
        "descriptor_for_type",
        "description",
        "dup",
        "equals",
        "extension",
        "freeze",
        "frozen",
        "hash",
        "hash_code",
        "init",
        "initialization_error_string",
        "inspect",
        "is_initialized",
        "merge_from",
        "method_missing",
        "methods",
        "mutable_copy",
        "object_id",
        "parser",
        "parser_for_type",
        "proto_reflect",
        "reset",
        "retain",
        "release",
        "respond_to",
        "send",
        "serialize",
        "serialized_size",
        "string",
        "superclass",
        "to_builder",
        "to_h",
        "to_s",
        "to_string",
        "unknown_fields",
        "which_oneof",
        "write_to",
    ]
)
# Classes: PHP's reserved names (its generator puts PB before them), and types that Java, Kotlin, Swift, C# and Ruby import unasked.
CLASS_NAMES = frozenset(
    [
        "abstract",
        "and",
        "array",
        "as",
        "bool",
        "break",
        "callable",
        "case",
        "catch",
        "class",
        "clone",
        "const",
        "continue",
        "declare",
        "default",
        "do",
        "echo",
        "else",
        "elseif",
        "empty",
        "enddeclare",
        "endfor",
        "endforeach",
        "endif",
        "endswitch",
        "endwhile",
        "enum",
        "eval",
        "exit",
        "extends",
        "false",
        "final",
        "finally",
        "float",
        "fn",
        "for",
        "foreach",
        "function",
        "global",
        "goto",
        "if",
        "implements",
        "include",
        "instanceof",
        "insteadof",
        "int",
        "interface",
        "isset",
        "iterable",
        "list",
        "match",
        "mixed",
        "namespace",
        "never",
        "new",
        "null",
        "object",
        "or",
        "parent",
        "print",
        "private",
        "protected",
        "public",
        "readonly",
        "require",
        "return",
        "self",
        "static",
        "string",
        "switch",
        "throw",
        "trait",
        "true",
        "try",
        "unset",
        "use",
        "var",
        "void",
        "while",
        "xor",
        "yield",
        "any",
        "boolean",
        "byte",
        "character",
        "comparable",
        "deprecated",
        "double",
        "error",
        "exception",
        "integer",
        "iterator",
        "long",
        "math",
        "module",
        "number",
        "nothing",
        "optional",
        "override",
        "package",
        "process",
        "protocol",
        "record",
        "result",
        "runtime",
        "set",
        "short",
        "system",
        "task",
        "thread",
        "throwable",
        "timestamp",
        "duration",
        "type",
        "unit",
        "message",
        "builder",
        "kernel",
        "basicobject",
        "method",
        "proc",
    ]
)


def camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def accessors(field: FieldDescriptor) -> Iterator[str]:
    """What the generators of Java, Kotlin, C#, PHP, Go and Objective-C derive from a field, behind get, set or has."""
    name = camel(field.name)
    yield name
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        yield from (name + end for end in ("Count", "Map", "OrDefault", "OrThrow", "Builder"))
        return
    text, message = field.cpp_type == FieldDescriptor.CPPTYPE_STRING, field.message_type is not None
    if field.is_repeated:
        yield from (name + end for end in ("Count", "List", "Array", "Array_Count"))
    elif field.has_presence:
        yield from ("Has" + name, "Clear" + name)
    if text and field.type == FieldDescriptor.TYPE_STRING:
        yield from (name + end for end in ("Bytes", "BytesList"))
    if field.type == FieldDescriptor.TYPE_ENUM:
        yield from (name + end for end in ("Value", "ValueList"))
    if message:
        yield from (
            name + end for end in ("Builder", "OrBuilder", "BuilderList", "OrBuilderList", "FieldBuilder")
        )


def collisions(message: Descriptor) -> list[str]:
    """Pairs of fields that lead to the same accessor."""
    owner: dict[str, str] = {}
    found = []
    derived = [(field.name, each) for field in message.fields for each in accessors(field)]
    derived += [(oneof.name, camel(oneof.name) + "Case") for oneof in message.oneofs if oneof_is_real(oneof)]
    for name, each in derived:
        # PHP, and file systems of generated files, do not tell upper from lower case.
        other = owner.setdefault(each.lower(), name)
        if other != name:
            found.append(f"{message.full_name}: {other} and {name} both make {each}")
    return found


def oneof_is_real(oneof) -> bool:
    return not (len(oneof.fields) == 1 and oneof.name == "_" + oneof.fields[0].name)


def messages(holder: FileDescriptor | Descriptor) -> Iterator[Descriptor]:
    found = (
        holder.message_types_by_name if isinstance(holder, FileDescriptor) else holder.nested_types_by_name
    )
    for each in found.values():
        if not each.GetOptions().map_entry:
            yield each
            yield from messages(each)


def enums(file: FileDescriptor) -> Iterator[EnumDescriptor]:
    yield from file.enum_types_by_name.values()
    for each in messages(file):
        yield from each.enum_types


def faults(file: FileDescriptor) -> list[str]:
    """Every name in a file that some language cannot compile."""
    found = []
    for message in messages(file):
        found += collisions(message)
        names = [field.name for field in message.fields]
        names += [oneof.name for oneof in message.oneofs if oneof_is_real(oneof)]
        found += [
            f"{message.full_name}.{each} is a keyword" for each in names if each.lower() in FIELD_KEYWORDS
        ]
        found += [f"{message.full_name}.{each} hides a member" for each in names if each in FIELD_MEMBERS]
        found += [
            f"{message.full_name}.{each} is not lower case with single underscores before letters"
            for each in names
            if each != each.lower() or any(not part[:1].isalpha() for part in each.split("_"))
        ]
    types = [*messages(file), *enums(file)]
    found += [f"{each.full_name} is a reserved class" for each in types if each.name.lower() in CLASS_NAMES]
    for enum in enums(file):
        prefix = "".join("_" + each if each.isupper() else each.upper() for each in enum.name).lstrip("_")
        found += [
            f"{value.name} does not begin with {prefix}_ and a letter"
            for value in enum.values
            if not value.name.removeprefix(prefix + "_")[:1].isalpha() or not value.name.startswith(prefix)
        ]
    for service in file.services_by_name.values():
        found += [
            f"{method.full_name} is a keyword"
            for method in service.methods
            if keyword.iskeyword(method.name) or method.name.lower() in FIELD_KEYWORDS
        ]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name.rsplit("/", 1)[1])
def test_every_name_compiles_in_every_language(file: FileDescriptor) -> None:
    assert faults(file) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name.rsplit("/", 1)[1])
def test_every_file_names_its_package_for_each_language(file: FileDescriptor) -> None:
    options = dpb.FileOptions.FromString(file.GetOptions().SerializeToString())
    assert options.java_package == "dev.staddle.v1"
    assert options.java_multiple_files
    assert options.go_package == "staddle.dev/gen/staddle/v1;staddlev1"
    assert options.csharp_namespace == options.ruby_package.replace("::", ".") == "Staddle.V1"
    assert options.php_namespace == "Staddle\\V1"
    assert options.php_metadata_namespace == "Staddle\\V1\\Metadata"
    assert options.objc_class_prefix == "STDL"


def test_no_type_takes_the_name_of_another_or_of_a_files_outer_class() -> None:
    types = [each.name.lower() for file in FILES for each in (*messages(file), *enums(file))]
    types += [file.GetOptions().java_outer_classname.lower() for file in FILES]
    types += [each.lower() for file in FILES for each in file.services_by_name]
    assert sorted(types) == sorted(set(types))


def made(*fields: dpb.FieldDescriptorProto, name: str = "Thing") -> FileDescriptor:
    """A file with one message."""
    proto = dpb.FileDescriptorProto(name="thing.proto", package="thing", syntax="proto3")
    proto.message_type.append(dpb.DescriptorProto(name=name, field=fields))
    pool = DescriptorPool()
    pool.AddSerializedFile(proto.SerializeToString())
    return pool.FindFileByName("thing.proto")


def field(number: int, name: str, kind: str, *, repeated: bool = False) -> dpb.FieldDescriptorProto:
    label = dpb.FieldDescriptorProto.LABEL_REPEATED if repeated else dpb.FieldDescriptorProto.LABEL_OPTIONAL
    return dpb.FieldDescriptorProto(name=name, number=number, label=label, type=f"TYPE_{kind.upper()}")


@pytest.mark.parametrize(
    ("file", "fault"),
    [
        (made(field(1, "path", "string"), field(2, "path_bytes", "bytes")), "both make PathBytes"),
        (made(field(1, "x", "int32", repeated=True), field(2, "x_count", "int32")), "both make XCount"),
        (made(field(1, "x", "int32", repeated=True), field(2, "x_list", "int32")), "both make XList"),
        (made(field(1, "from", "int32")), "Thing.from is a keyword"),
        (made(field(1, "class", "int32")), "Thing.class is a keyword"),
        (made(field(1, "serialized_size", "int32")), "Thing.serialized_size hides a member"),
        (made(field(1, "a_1", "int32")), "Thing.a_1 is not lower case"),
        (made(name="List"), "thing.List is a reserved class"),
    ],
)
def test_names_that_do_not_compile_somewhere_are_found(file: FileDescriptor, fault: str) -> None:
    assert any(fault in each for each in faults(file)), faults(file)
