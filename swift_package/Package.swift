// swift-tools-version: 6.0
import PackageDescription

// COREML_SHIM=1 builds the Core ML adapters against Sources/CoreMLShim, to test them without Core ML.
// Give these builds their own folder: --scratch-path .build-shim.
let usesShim = Context.environment["COREML_SHIM"] == "1"
let shimSettings: [SwiftSetting] = usesShim ? [.define("COREML_SHIM")] : []
let shimTargets: [Target] =
  usesShim
  ? [
    .target(name: "CoreMLShim"),
    .testTarget(
      name: "DiffusionCoreMLTests",
      dependencies: ["CoreMLShim", "DiffusionCoreML", "MatryoshkaDiffusion", "TestBundle"],
      swiftSettings: shimSettings),
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
    .target(name: "DiffusionCore"),
    .target(name: "MatryoshkaDiffusion", dependencies: ["DiffusionCore"]),
    // Thin adapters; empty where there is no Core ML.
    .target(
      name: "DiffusionCoreML", dependencies: ["DiffusionCore"] + (usesShim ? ["CoreMLShim"] : []),
      resources: [.copy("PrivacyInfo.xcprivacy")], swiftSettings: shimSettings),
    // Runs a bundle with `mdm serve-bundle` where there is no Core ML.
    .target(name: "DiffusionPipe", dependencies: ["DiffusionCore"]),
    // Latencies of a pipeline, as lines for `mdm doctor`.
    .target(name: "DiffusionBench", dependencies: ["DiffusionCore", "MatryoshkaDiffusion"]),
    .executableTarget(
      name: "mdm-generate",
      dependencies: [
        "DiffusionBench", "DiffusionCore", "DiffusionCoreML", "DiffusionPipe",
        "MatryoshkaDiffusion",
      ],
      swiftSettings: shimSettings),
    // For comparison in the Python tests: prints the library's outputs for given inputs.
    .executableTarget(name: "mdm-dump", dependencies: ["DiffusionCore", "DiffusionPipe"]),
    .testTarget(name: "DiffusionCoreTests", dependencies: ["DiffusionCore"]),
    .target(name: "TestBundle", dependencies: ["DiffusionCore"], path: "Tests/TestBundle"),
    .testTarget(
      name: "MatryoshkaDiffusionTests",
      dependencies: ["DiffusionBench", "MatryoshkaDiffusion", "TestBundle"]),
    .testTarget(name: "DiffusionPipeTests", dependencies: ["DiffusionPipe", "TestBundle"]),
  ] + shimTargets,
  swiftLanguageModes: [.v6]
)
