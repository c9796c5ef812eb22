// swift-tools-version: 6.0
import PackageDescription

// The manifest lies at the root, since an app that adds a package by URL looks for it there only.
let sources = "swift_package/Sources"
let tests = "swift_package/Tests"

// COREML_SHIM=1, COREAI_SHIM=1 and AVFOUNDATION_SHIM=1 build what uses a framework against our own
// declarations of it, to test it where the framework is missing. Give these builds their own folder: --scratch-path .build-shim.
let usesCoreMLShim = Context.environment["COREML_SHIM"] == "1"
let usesCoreAIShim = Context.environment["COREAI_SHIM"] == "1"
let usesAVFoundationShim = Context.environment["AVFOUNDATION_SHIM"] == "1"
let coreML: (dependencies: [Target.Dependency], settings: [SwiftSetting]) =
  usesCoreMLShim ? (["CoreMLShim"], [.define("COREML_SHIM")]) : ([], [])
let coreAI: (dependencies: [Target.Dependency], settings: [SwiftSetting]) =
  usesCoreAIShim ? (["CoreAIShim"], [.define("COREAI_SHIM")]) : ([], [])
let avFoundation: (dependencies: [Target.Dependency], settings: [SwiftSetting]) =
  usesAVFoundationShim ? (["AVFoundationShim"], [.define("AVFOUNDATION_SHIM")]) : ([], [])
let coreMLTargets: [Target] =
  usesCoreMLShim
  ? [
    .target(name: "CoreMLShim", path: "\(sources)/CoreMLShim"),
    .testTarget(
      name: "DiffusionCoreMLTests",
      dependencies: ["CoreMLShim", "DiffusionCoreML", "MatryoshkaDiffusion", "TestBundle"],
      path: "\(tests)/DiffusionCoreMLTests", swiftSettings: coreML.settings),
  ] : []
let coreAITargets: [Target] =
  usesCoreAIShim
  ? [
    // Views of arrays have lifetimes that the compiler checks, as Apple's have; Swift 6.2 or later.
    .target(
      name: "CoreAIShim", path: "\(sources)/CoreAIShim",
      swiftSettings: [.enableExperimentalFeature("Lifetimes")]),
    .testTarget(
      name: "DiffusionCoreAITests",
      dependencies: ["CoreAIShim", "DiffusionCoreAI", "MatryoshkaDiffusion", "TestBundle"],
      path: "\(tests)/DiffusionCoreAITests", swiftSettings: coreAI.settings),
  ] : []

let avFoundationTargets: [Target] =
  usesAVFoundationShim
  ? [
    .target(name: "AVFoundationShim", path: "\(sources)/AVFoundationShim"),
    .testTarget(
      name: "MovieWriterTests", dependencies: ["MatryoshkaDiffusion"], path: "\(tests)/MovieWriterTests",
      swiftSettings: avFoundation.settings),
  ] : []

let package = Package(
  name: "MatryoshkaDiffusion",
  platforms: [.macOS(.v15), .iOS(.v18)],
  products: [
    .library(name: "MatryoshkaDiffusion", targets: ["MatryoshkaDiffusion"]),
    .library(name: "DiffusionCore", targets: ["DiffusionCore"]),
    .library(name: "DiffusionCoreML", targets: ["DiffusionCoreML"]),
    .library(name: "DiffusionCoreAI", targets: ["DiffusionCoreAI"]),
    .library(name: "DiffusionBench", targets: ["DiffusionBench"]),
    .library(name: "DiffusionPipe", targets: ["DiffusionPipe"]),
    .executable(name: "mdm-generate", targets: ["mdm-generate"]),
  ],
  targets: [
    .target(name: "DiffusionCore", path: "\(sources)/DiffusionCore"),
    .target(
      name: "MatryoshkaDiffusion", dependencies: ["DiffusionCore"] + avFoundation.dependencies,
      path: "\(sources)/MatryoshkaDiffusion", swiftSettings: avFoundation.settings),
    // Thin adapters; empty where there is no Core ML.
    .target(
      name: "DiffusionCoreML", dependencies: ["DiffusionCore"] + coreML.dependencies,
      path: "\(sources)/DiffusionCoreML", resources: [.copy("PrivacyInfo.xcprivacy")],
      swiftSettings: coreML.settings),
    // The same for Core AI, which is younger than the platforms above. Every symbol that is used says so,
    // and the linker then makes the framework optional: an app with this module starts without it.
    .target(
      name: "DiffusionCoreAI", dependencies: ["DiffusionCore"] + coreAI.dependencies,
      path: "\(sources)/DiffusionCoreAI", swiftSettings: coreAI.settings),
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
        "DiffusionBench", "DiffusionCore", "DiffusionCoreAI", "DiffusionCoreML", "DiffusionPipe",
        "MatryoshkaDiffusion",
      ],
      path: "\(sources)/mdm-generate", swiftSettings: coreML.settings + coreAI.settings),
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
  ] + coreMLTargets + coreAITargets + avFoundationTargets,
  swiftLanguageModes: [.v6]
)
