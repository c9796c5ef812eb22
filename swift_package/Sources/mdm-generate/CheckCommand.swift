import DiffusionCore
import MatryoshkaDiffusion

/// `mdm-generate check BUNDLE`: one prediction of this device against the golden record.
struct CheckCommand {
  let options: CommandLineOptions
  let bundle: BundleFolder
  let choice: RuntimeChoice

  private struct Report: Encodable {
    let psnr: Double
    let floor: Double
    let remark: String?
  }

  func run() async throws {
    let floor = GoldenProbe.floor(of: bundle.manifest)
    let (psnr, remark) = try await found()
    guard psnr >= floor else {
      throw MatryoshkaError.selfTestFailed(
        reason: "reached \(rounded(psnr)) dB, expected \(floor) dB of the golden record")
    }
    // JSON has no infinity; beyond 999 dB two numbers of single precision are equal.
    let report = Report(psnr: min(psnr, 999), floor: floor, remark: remark)
    let sentence = "\(rounded(report.psnr)) dB of the golden record, expected \(floor)"
    try Output.put(
      options.isJSON ? report : nil, [sentence, remark].compactMap { $0 }.joined(separator: "\n"))
  }

  private func rounded(_ decibels: Double) -> Double { (decibels * 10).rounded() / 10 }

  private func found() async throws -> (psnr: Double, remark: String?) {
    if choice == .coreai {
      return try await CoreAICommands(options: options, bundle: bundle).selfTest()
    }
    let runtime = try choice.runtime(options, bundle)
    let probe = try GoldenProbe(of: bundle)
    do {
      let psnr = try await probe.closeness(of: runtime, in: bundle)
      await runtime.release()
      return (psnr, nil)
    } catch {
      await runtime.release()
      throw error
    }
  }
}
