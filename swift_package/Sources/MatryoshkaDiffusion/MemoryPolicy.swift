import DiffusionCore
import Foundation

#if os(iOS) || os(tvOS) || os(visionOS)
  import os
#endif

/// What stays loaded, and when.
public enum MemoryPolicy: String, CaseIterable, Sendable {
  /// The first of the others that fits into the memory that is available.
  case automatic
  /// All packages, between pictures too: fastest.
  case resident
  /// The packages of one phase: the text encoder is gone when the denoiser comes.
  case staged
  /// One package at a time: slowest.
  case minimal

  /// The policy to use. Refuses, before anything is loaded, what does not fit.
  ///
  /// - Parameter available: bytes; nil where that is unknown, which refuses nothing.
  package func resolved(_ peak: Manifest.PeakMemory, available: Int?) throws -> MemoryPolicy {
    guard let available else { return self == .automatic ? .resident : self }
    let needs: [(MemoryPolicy, Int)] = [
      (.resident, peak.resident), (.staged, peak.staged), (.minimal, peak.minimal),
    ]
    let allowed = needs.filter { self == .automatic || self == $0.0 }
    guard let fitting = allowed.first(where: { $0.1 <= available }) else {
      throw MatryoshkaError.notEnoughMemory(
        needed: allowed.map(\.1).min() ?? peak.minimal, available: available)
    }
    return fitting.0
  }

  /// Bytes that this process may still take; nil where the system does not say.
  public static func availableMemory() -> Int? {
    #if os(iOS) || os(tvOS) || os(visionOS)
      return os_proc_available_memory()
    #elseif os(Linux)
      guard let text = try? String(contentsOfFile: "/proc/meminfo", encoding: .utf8),
        let line = text.split(separator: "\n").first(where: { $0.hasPrefix("MemAvailable:") }),
        let kilobytes = line.split(separator: " ").dropFirst().first.flatMap({ Int($0) })
      else { return nil }
      return kilobytes << 10
    #else
      // A Mac swaps rather than refuse; half of its memory is what is left alone to others.
      return Int(ProcessInfo.processInfo.physicalMemory / 2)
    #endif
  }
}
