import Foundation
import Testing

/// What this machine cannot compile is read as text: conditions that hold on Apple's systems alone.
@Suite struct SystemTests {
  private static let package = URL(filePath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

  private func texts(in folder: String, _ ending: String = "swift") throws -> [(String, String)] {
    let place = SystemTests.package.appending(path: folder)
    let names = try FileManager.default.subpathsOfDirectory(atPath: place.path)
    return try names.filter { $0.hasSuffix(".\(ending)") }.map {
      ($0, try String(contentsOf: place.appending(path: $0), encoding: .utf8))
    }
  }

  /// With COREML_SHIM=1 on a Mac, Core ML can be imported as well, and tests give fakes to the sources.
  @Test func theShimWinsWhereItIsAskedFor() throws {
    let sources = try texts(in: "Sources")
    let order = """
      #if COREML_SHIM
          import CoreMLShim
        #elseif canImport(CoreML)
          import CoreML
        #endif
      """
    let importing = sources.filter { $0.1.contains("import CoreML\n") }
    #expect(importing.count >= 5)
    for (name, text) in importing {
      #expect(text.contains(order), "\(name)")
    }
    for (name, text) in sources {
      let lines = text.split(separator: "\n").filter { $0.contains("canImport(CoreML)") }
      #expect(lines.allSatisfy { $0.contains("COREML_SHIM") || $0.contains("#elseif") }, "\(name)")
    }
  }

  @Test func theShimOfAVFoundationWinsToo() throws {
    let importing = try texts(in: "Sources").filter { $0.1.contains("import AVFoundation\n") }
    #expect(importing.map(\.0) == ["MatryoshkaDiffusion/MovieWriter.swift"])
    let order = """
      #if AVFOUNDATION_SHIM
          import AVFoundationShim
        #elseif canImport(AVFoundation)
          import AVFoundation
        #endif
      """
    for (name, text) in importing { #expect(text.contains(order), "\(name)") }
  }

  /// `mach_task_self_` is imported as a mutable global, which Swift 6 refuses, before the SDK of Xcode
  /// 16.3 (Swift 6.1). Other processes exist on macOS and Linux alone.
  @Test func whatSomeSystemsLackIsConditional() throws {
    for (name, text) in try texts(in: "Sources") {
      if text.contains("mach_task_self_") { #expect(text.contains("compiler(>=6.1)"), "\(name)") }
      if text.contains("PipeRuntime(") || text.contains("Process()") {
        #expect(text.contains("#if os(Linux) || os(macOS)"), "\(name)")
      }
    }
  }

  /// A student takes no sampler but its own, so an example that names none fails with it.
  @Test func everyExampleAsksForTheSamplerOfTheBundle() throws {
    let pages = try texts(in: "Sources", "md") + texts(in: "Examples")
      + texts(in: "../docs", "md").filter { $0.0 == "swift.md" }
    var count = 0
    for (name, text) in pages {
      for kind in ["PictureRequest(", "ClipRequest("] {
        for part in text.components(separatedBy: kind).dropFirst() {
          count += 1
          #expect(part.prefix(100).contains("sampler"), "\(name)")
        }
      }
    }
    #expect(count >= 5)
  }
}
