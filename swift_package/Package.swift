// swift-tools-version: 6.0
import PackageDescription

let package = Package(
  name: "MatryoshkaDiffusion",
  platforms: [.macOS(.v15), .iOS(.v18)],
  products: [
    .library(name: "MatryoshkaDiffusion", targets: ["MatryoshkaDiffusion"]),
    .library(name: "DiffusionCore", targets: ["DiffusionCore"]),
    .library(name: "DiffusionPipe", targets: ["DiffusionPipe"]),
    .executable(name: "mdm-generate", targets: ["mdm-generate"]),
  ],
  targets: [
    .target(name: "DiffusionCore"),
    .target(name: "MatryoshkaDiffusion", dependencies: ["DiffusionCore"]),
    // Runs a bundle by `mdm serve-bundle`, where there is no Core ML.
    .target(name: "DiffusionPipe", dependencies: ["DiffusionCore"]),
    .executableTarget(
      name: "mdm-generate", dependencies: ["DiffusionCore", "DiffusionPipe", "MatryoshkaDiffusion"]),
    // What the tests in Python compare with: prints what the library makes of given inputs.
    .executableTarget(name: "mdm-dump", dependencies: ["DiffusionCore", "DiffusionPipe"]),
    .testTarget(name: "DiffusionCoreTests", dependencies: ["DiffusionCore"]),
    .testTarget(name: "MatryoshkaDiffusionTests", dependencies: ["MatryoshkaDiffusion"]),
  ],
  swiftLanguageModes: [.v6]
)
