// swift-tools-version: 6.0
import PackageDescription

// The manifest lies at the root, since an app that adds a package by URL looks for it there only.
let sources = "swift_package/Sources"
let tests = "swift_package/Tests"

// COREML_SHIM=1 builds the Core ML adapters against CoreMLShim, to test them without Core ML.
// Give these builds their own folder: --scratch-path .build-shim.
let usesShim = Context.environment["COREML_SHIM"] == "1"
let shimSettings: [SwiftSetting] = usesShim ? [.define("COREML_SHIM")] : []
let shimTargets: [Target] =
  usesShim
  ? [
    .target(name: "CoreMLShim", path: "\(sources)/CoreMLShim"),
    .testTarget(
      name: "DiffusionCoreMLTests",
      dependencies: ["CoreMLShim", "DiffusionCoreML", "MatryoshkaDiffusion", "TestBundle"],
      path: "\(tests)/DiffusionCoreMLTests", swiftSettings: shimSettings),
  ] : []

let package = Package(
  name: "MatryoshkaDiffusion",
  platforms: [.macOS(.v15), .iOS(.v18)],
  products: [
    .library(name: "MatryoshkaDiffusion", targets: ["MatryoshkaDiffusion"]),
    .library(name: "DiffusionCore", targets: ["DiffusionCore"]),
    .library(name: "DiffusionCoreML", targets: ["DiffusionCoreML"]),
    .library(name: "DiffusionBench", targets: ["DiffusionBench"]),
    .library(name: "DiffusionPipe", targets: ["DiffusionPipe"]),
    .executable(name: "mdm-generate", targets: ["mdm-generate"]),
  ],
  targets: [
    .target(name: "DiffusionCore", path: "\(sources)/DiffusionCore"),
    .target(
      name: "MatryoshkaDiffusion", dependencies: ["DiffusionCore"],
      path: "\(sources)/MatryoshkaDiffusion"),
    // Thin adapters; empty where there is no Core ML.
    .target(
      name: "DiffusionCoreML", dependencies: ["DiffusionCore"] + (usesShim ? ["CoreMLShim"] : []),
      path: "\(sources)/DiffusionCoreML", resources: [.copy("PrivacyInfo.xcprivacy")],
      swiftSettings: shimSettings),
    // Runs a bundle with `mdm serve-bundle` where there is no Core ML.
    .target(
      name: "DiffusionPipe", dependencies: ["DiffusionCore"], path: "\(sources)/DiffusionPipe"),
    // Latencies of a pipeline, as lines for `mdm doctor`.
    .target(
      name: "DiffusionBench", dependencies: ["DiffusionCore", "MatryoshkaDiffusion"],
      path: "\(sources)/DiffusionBench"),
    .executableTarget(
      name: "mdm-generate",
      dependencies: [
        "DiffusionBench", "DiffusionCore", "DiffusionCoreML", "DiffusionPipe",
        "MatryoshkaDiffusion",
      ],
      path: "\(sources)/mdm-generate", swiftSettings: shimSettings),
    // For comparison in the Python tests, and no product: prints the library's outputs for given
    // inputs.
    .executableTarget(
      name: "mdm-dump", dependencies: ["DiffusionCore", "DiffusionPipe", "SeededRandom"],
      path: "\(sources)/mdm-dump"),
    .target(name: "SeededRandom", path: "\(tests)/SeededRandom"),
    .target(name: "TestBundle", dependencies: ["DiffusionCore"], path: "\(tests)/TestBundle"),
    .testTarget(
      name: "DiffusionCoreTests", dependencies: ["DiffusionCore", "TestBundle"],
      path: "\(tests)/DiffusionCoreTests"),
    .testTarget(
      name: "MatryoshkaDiffusionTests",
      dependencies: ["DiffusionBench", "MatryoshkaDiffusion", "SeededRandom", "TestBundle"],
      path: "\(tests)/MatryoshkaDiffusionTests"),
    .testTarget(
      name: "DiffusionPipeTests", dependencies: ["DiffusionPipe", "TestBundle"],
      path: "\(tests)/DiffusionPipeTests"),
  ] + shimTargets,
  swiftLanguageModes: [.v6]
)
